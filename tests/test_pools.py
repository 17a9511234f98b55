"""The pools against PyTorch's own: values, gradients, ties, and every other way to differentiate."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ferattn import pools

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
OVER = [((2, 3), False), ((1,), True)]
PAIRS = {"mean": (pools.mean, torch.mean), "amax": (pools.amax, torch.amax)}


def _values(dtype: torch.dtype, *, shape: tuple[int, ...] = (2, 6, 60, 60)) -> torch.Tensor:
    """Around 25, so that a sum is too much for float16; with many equal values."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((4 * drawn).round() / 4 + 25).to(dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients(name: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    own, plain = PAIRS[name]
    for dims, keepdim in OVER:
        x, y = (_values(dtype).to(memory_format=layout).requires_grad_() for _ in range(2))
        ours, theirs = own(x, dims, keepdim), plain(y, dims, keepdim)
        # A mean in bfloat16 is rounded once for the sum and once for the quotient; a maximum is exact.
        rounding = {"rtol": 2 * torch.finfo(dtype).eps if name == "mean" else 0, "atol": 0}
        torch.testing.assert_close(ours, theirs, **rounding)
        weights = torch.arange(ours.numel(), dtype=torch.float64).view_as(ours).to(dtype) / ours.numel() + 1
        (first,) = torch.autograd.grad(ours, x, weights)
        (second,) = torch.autograd.grad(theirs, y, weights)
        torch.testing.assert_close(first, second, rtol=2 * torch.finfo(dtype).eps, atol=0)
        if name == "amax":
            assert first.is_contiguous(memory_format=layout)
        assert torch.equal(own(x.detach(), dims, keepdim), plain(y.detach(), dims, keepdim))


@pytest.mark.parametrize("name", PAIRS)
def test_higher_derivatives(name: str) -> None:
    own, _ = PAIRS[name]
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for dims, keepdim in OVER:
        assert torch.autograd.gradcheck(lambda t: own(t, dims, keepdim), (x,))  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda t: own(t, dims, keepdim).square(), (x,))  # noqa: B023


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_other_ways_to_differentiate(name: str) -> None:
    own, plain = PAIRS[name]
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(pool, t: torch.Tensor) -> torch.Tensor:
        return pool(t[None], (2, 3), False).square().sum()

    by_sample = [torch.func.vmap(torch.func.grad(lambda t, p=pool: loss(p, t)))(x) for pool in (own, plain)]
    torch.testing.assert_close(*by_sample)
    forward = [torch.func.jvp(lambda t, p=pool: p(t, (2, 3), False), (x,), (x + 1,))[1] for pool in (own, plain)]
    torch.testing.assert_close(*forward)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.clone().requires_grad_(), x + 1)
        pooled = torch.autograd.forward_ad.unpack_dual(own(dual, (2, 3))).tangent
    torch.testing.assert_close(pooled.detach(), forward[1])


def test_a_compiler_sees_pytorchs_own() -> None:
    seen = []

    def backend(module: torch.fx.GraphModule, _inputs: object):
        seen.extend(str(node.target) for node in module.graph.nodes if node.op in ("call_function", "call_method"))
        return module

    x = _values(torch.float32).requires_grad_()
    torch._dynamo.reset()
    torch.compile(lambda t: pools.mean(t, (2, 3)) + pools.amax(t, (2, 3)), backend=backend, fullgraph=True)(x)
    torch._dynamo.reset()
    assert {"mean", "amax"} <= set(seen)
    assert "sum" not in seen


def test_no_mask_of_booleans_on_a_cpu() -> None:
    class Masks(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            found.append(isinstance(out, torch.Tensor) and out.dtype == torch.bool)
            return out

    for pool, masks in ((pools.amax, False), (torch.amax, True)):
        found: list[bool] = []
        x = _values(torch.float32).requires_grad_()
        out = pool(x, (2, 3), False)
        with Masks():
            out.sum().backward()
        assert found
        assert any(found) is masks
