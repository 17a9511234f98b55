"""The fused tail against the module-by-module tail: in float64 to the last digits, in other dtypes no worse."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor import metrics
from torch._inductor.compile_fx import inductor_metrics_log
from torch.utils._python_dispatch import TorchDispatchMode

from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice
from ferattn.kernels import ACTS, Act, CBAMGate, ECAGate, Gate, Norm, SEGate, fused_tail, plain_tail

KINDS = ("se", "se-bare", "eca", "eca-circular", "cbam", "cbam-bare", "cbam-unrefined")
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "every second channel": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}
SIZES = ((5, 6, 1, 1), (3, 6, 2, 2), (2, 8, 7, 7), (1, 8, 12, 12), (2, 5, 13, 17), (1, 4, 48, 48), (2, 1023, 3, 2))


def _gate(kind: str, c: int, r: int = 3) -> Gate:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64) * 0.5

    name, _, variant = kind.partition("-")
    bare = variant == "bare"
    if name == "eca":
        return ECAGate(draw(1, 1, 3), None if variant else draw(1), c, circular=variant == "circular")
    layers = (draw(r, c) / c**0.5, None if bare else draw(r), draw(c, r), None if bare else draw(c))
    if name == "se":
        return SEGate(*layers)
    return CBAMGate(*layers, draw(1, 2, 7, 7), None if bare else draw(1), refined=variant != "unrefined")


class Case:
    """A tail's inputs, to be computed in any dtype by any of the functions."""

    def __init__(self, kind: str, mode: str, act: Act, shape: tuple[int, ...], *, shortcut: bool = True) -> None:
        c = shape[1]
        self.gate, self.mode, self.act = _gate(kind, c), mode, act
        self.maps = [torch.randn(shape, dtype=torch.float64) for _ in range(3 if shortcut else 2)]
        self.maps[0] = self.maps[0] * 2 + torch.randn(c, 1, 1, dtype=torch.float64)
        self.weight, self.bias = torch.randn(c, dtype=torch.float64), torch.randn(c, dtype=torch.float64)

    def run(
        self,
        tail: Callable[..., Tensor],
        dtype: torch.dtype = torch.float64,
        weights: torch.dtype | None = None,
        layout: Callable[[Tensor], Tensor] = LAYOUTS["contiguous"],
        device: str = "cpu",
        **options: Any,
    ) -> dict[str, Tensor]:
        """Output, every gradient and the running statistics, by name."""
        weights = weights or dtype
        x, dout, *shortcut = (layout(m.to(device, dtype)).detach() for m in self.maps)
        leaves = dict(zip(("x", "shortcut"), (x, *shortcut), strict=False))
        on = {"dtype": weights, "device": device}
        buffers = torch.zeros(x.shape[1], **on), torch.ones(x.shape[1], **on)
        small = {name: t.to(**on) for name, t in self.gate._asdict().items() if isinstance(t, Tensor)}
        if self.mode != "none":
            small |= {"gamma": self.weight.to(**on), "beta": self.bias.to(**on)}
        leaves = {name: t.detach().clone() if name in small else t for name, t in (leaves | small).items()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        gate = self.gate._replace(**{name: leaves[name] for name in self.gate._fields if name in leaves})
        norm = None
        if self.mode != "none":
            norm = Norm(leaves["gamma"], leaves["beta"], *buffers, training=self.mode == "train", momentum=0.3)
        out = tail(leaves["x"], leaves.get("shortcut"), gate, norm, self.act, **options)
        found = torch.autograd.grad(out, list(leaves.values()), dout)
        gradients = {f"d{name}": gradient for name, gradient in zip(leaves, found, strict=True)}
        assert all(found.dtype == leaves[name[1:]].dtype for name, found in gradients.items())
        return {"out": out.detach(), **gradients, "mean": buffers[0], "var": buffers[1]}


def _close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["none", "eval", "train"])
def test_every_gradient_is_autograds(kind: str, mode: str) -> None:
    torch.manual_seed(0)
    for act, shortcut in itertools.product(ACTS, (True, False)):
        case = Case(kind, mode, Act(act, 0.7), (3, 6, 5, 4), shortcut=shortcut)
        _close(case.run(fused_tail), case.run(plain_tail))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SIZES)
def test_every_size_and_layout(shape: tuple[int, ...], layout: str) -> None:
    torch.manual_seed(1)
    for kind in ("se", "eca", "cbam"):
        case = Case(kind, "train", Act("relu"), shape)
        ours, theirs = (case.run(tail, layout=LAYOUTS[layout]) for tail in (fused_tail, plain_tail))
        if layout == "expanded" and shape[0] > 1:  # equal samples: the same tie in every one of them
            assert ours["dx"].shape == shape
        _close(ours, theirs, 1e-9)
        if layout == "channels_last" and min(shape[1:]) > 1:
            assert ours["out"].is_contiguous(memory_format=torch.channels_last)
            assert ours["dx"].is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(["none", "eval", "train"]),
    st.sampled_from(ACTS),
    st.tuples(st.integers(2, 3), st.integers(2, 7), st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 99),
)
def test_any_tail_is_the_plain_tail(kind: str, mode: str, act: str, shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    case = Case(kind, mode, Act(act, 1.3), shape)
    _close(case.run(fused_tail), case.run(plain_tail), 1e-8)


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_errors_are_at_most_twice_pytorchs(kind: str, dtype: torch.dtype, mode: str) -> None:
    """Maximal errors against float64 of the same rounded inputs, over 24 draws."""
    worst: dict[str, list[float]] = {}
    for seed in range(24):
        torch.manual_seed(seed)
        case = Case(kind, mode, Act("elu"), (4, 32, 7, 7))
        case.maps = [m.to(dtype).double() for m in case.maps]
        exact = case.run(plain_tail, weights=torch.float64)
        for index, tail in enumerate((fused_tail, plain_tail)):
            # As under autocast: half-precision maps, float32 weights. The plain tail's gate needs them alike.
            weights = torch.float32 if tail is fused_tail or dtype == torch.float32 else dtype
            found = case.run(tail, dtype, weights)
            for name, value in found.items():
                error = (value.double() - exact[name]).abs().max().item()
                worst.setdefault(name, [0.0, 0.0])[index] += error
    for name, (ours, theirs) in worst.items():
        assert ours <= 2 * theirs + 1e-12, (name, ours, theirs)


def test_half_precision_output_is_within_one_rounding() -> None:
    for dtype, kind in itertools.product((torch.bfloat16, torch.float16), ("se", "eca", "cbam")):
        torch.manual_seed(2)
        case = Case(kind, "train", Act("relu"), (2, 16, 6, 6))
        case.maps = [m.to(dtype).double() for m in case.maps]
        exact = case.run(plain_tail)["out"]
        ours = case.run(fused_tail, dtype, torch.float32)["out"].double()
        step = torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).tiny
        assert ((ours - exact).abs() <= 0.51 * step + 1e-6).all()


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
def test_autocast_does_not_reach_into_the_tail(kind: str) -> None:
    torch.manual_seed(3)
    case = Case(kind, "train", Act("relu"), (2, 8, 5, 5))
    expected = case.run(fused_tail, torch.bfloat16, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _close(case.run(fused_tail, torch.bfloat16, torch.float32), expected, 0)


def test_a_large_mean_is_not_cancelled_away() -> None:
    """Channel means of 15 deviations; the shared rounding of the mean itself is allowed for."""
    torch.manual_seed(4)
    case = Case("se", "train", Act("relu"), (4, 8, 7, 7))
    case.maps[0] = (case.maps[0] + 30).float().double()
    exact = case.run(plain_tail)
    ours, theirs = case.run(fused_tail, torch.float32), case.run(plain_tail, torch.float32)
    for name in exact:
        errors = [(found[name].double() - exact[name]).abs().max().item() for found in (ours, theirs)]
        assert errors[0] <= 4 * errors[1] + 1e-6, (name, errors)


# Ties


@pytest.mark.parametrize("mode", ["none", "eval", "train"])
@pytest.mark.parametrize("kind", ["cbam", "cbam-unrefined"])
def test_ties_are_shared_as_amax_shares_them(kind: str, mode: str) -> None:
    torch.manual_seed(5)
    case = Case(kind, mode, Act("relu"), (2, 6, 4, 4))
    case.maps[0] = case.maps[0].round().clamp(-1, 1)
    _close(case.run(fused_tail), case.run(plain_tail))
    case.weight, case.bias = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    _close(case.run(fused_tail), case.run(plain_tail))  # timm's start: every place ties with every other
    case.weight[::2] = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    _close(case.run(fused_tail), case.run(plain_tail))


def _first_cbam(x: Tensor, shortcut: Tensor | None, gate: Gate, norm: Norm | None, act: Act) -> Tensor:
    """CBAM with ``max`` along one axis, whose gradient goes to one place, instead of ``amax``."""
    assert isinstance(gate, CBAMGate)
    y = x if norm is None else torch.nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True)

    def mlp(z: Tensor) -> Tensor:
        hidden = torch.relu(torch.nn.functional.linear(z, gate.w1, gate.b1))
        return torch.nn.functional.linear(hidden, gate.w2, gate.b2)

    u = y * torch.sigmoid(mlp(y.mean((2, 3))) + mlp(y.flatten(2).max(2).values))[:, :, None, None]
    pooled = torch.cat([u.mean(1, keepdim=True), u.max(1, keepdim=True).values], 1)
    z = u * torch.sigmoid(torch.nn.functional.conv2d(pooled, gate.weight, gate.bias, padding=3))
    return torch.relu(z if shortcut is None else z + shortcut)


@pytest.mark.parametrize("mode", ["none", "train"])
def test_ties_go_to_the_first_place_on_request(mode: str) -> None:
    torch.manual_seed(6)
    case = Case("cbam", mode, Act("relu"), (2, 6, 4, 4))
    case.maps[0] = case.maps[0].round().clamp(-1, 1)
    for weight in (case.weight.abs(), torch.zeros(6, dtype=torch.float64)):
        case.weight, case.bias = weight, case.bias * (weight != 0)
        ours, expected = case.run(fused_tail, ties="first"), case.run(_first_cbam)
        for of in (ours, expected):
            del of["mean"], of["var"]
        _close(ours, expected)
        if mode == "train":
            shared = case.run(fused_tail)
            # Behind zeros for gamma and beta y is zero, and nothing reaches the maxima at all.
            assert torch.allclose(ours["dx"], shared["dx"]) == bool((weight == 0).all())


# Values that are no numbers


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("mode", ["none", "eval", "train"])
def test_nan_and_inf_come_out_where_pytorchs_do(kind: str, value: float, mode: str) -> None:
    torch.manual_seed(7)
    case = Case(kind, mode, Act("relu"), (3, 6, 4, 4))
    case.maps[0][1, 2, 0, 3] = value
    ours, theirs = case.run(fused_tail), case.run(plain_tail)
    torch.testing.assert_close(ours["out"], theirs["out"], equal_nan=True)
    torch.testing.assert_close(ours["mean"], theirs["mean"], equal_nan=True)
    for name in theirs:  # no gradient of ours is finite where PyTorch's is not
        assert not (ours[name].isfinite() & ~theirs[name].isfinite()).any(), name


# Derivatives


@pytest.mark.parametrize("kind", ["se", "eca-circular", "cbam", "cbam-unrefined"])
@pytest.mark.parametrize("act", ["relu", "silu"])
def test_gradients_and_second_derivatives_against_finite_differences(kind: str, act: str) -> None:
    torch.manual_seed(8)
    gate = _gate(kind, 3, 2)
    if isinstance(gate, CBAMGate):
        gate = gate._replace(weight=gate.weight[..., 2:5, 2:5].clone())
    names = [name for name in gate._fields if isinstance(getattr(gate, name), Tensor)]
    x, shortcut = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    inputs = (x, shortcut, torch.randn(3).double(), torch.randn(3).double(), *(getattr(gate, name) for name in names))
    inputs = tuple(t.clone().requires_grad_() for t in inputs)

    def run(x: Tensor, shortcut: Tensor, weight: Tensor, bias: Tensor, *weights: Tensor) -> Tensor:
        of_gate = gate._replace(**dict(zip(names, weights, strict=True)))
        return fused_tail(x, shortcut, of_gate, Norm(weight, bias, None, None, training=True), Act(act))

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_second_derivatives_are_the_plain_tails() -> None:
    torch.manual_seed(9)
    for kind, act in itertools.product(("se", "cbam"), ACTS):
        case = Case(kind, "train", Act(act), (2, 4, 3, 3))
        second = []
        for tail in (fused_tail, plain_tail):
            x, shortcut = case.maps[0].clone().requires_grad_(), case.maps[2].clone().requires_grad_()
            norm = Norm(case.weight, case.bias, None, None, training=True)
            out = tail(x, shortcut, case.gate, norm, case.act)
            (dx,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
            second.append(torch.autograd.grad(dx.square().sum(), [x, shortcut], allow_unused=True))
        for ours, theirs in zip(*second, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    torch.manual_seed(10)
    x = torch.randn(2, 6, 3, 3)
    gate = ECAGate(torch.randn(1, 1, 3, requires_grad=True), None, 6)
    fused_tail(x, None, gate).sum().backward()
    assert gate.weight.grad is not None
    assert x.grad is None
    assert not fused_tail(x, None, ECAGate(torch.randn(1, 1, 3), None, 6)).requires_grad


# What it costs


def _saved_bytes(run: Callable[[], Tensor]) -> int:
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run()
    del out
    return sum(saved.values())


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
@pytest.mark.parametrize(
    ("act", "shortcut", "maps"), [("relu", True, 2), ("silu", True, 2), ("identity", True, 1), ("silu", False, 1)]
)
def test_two_maps_are_saved_and_little_else(kind: str, act: str, shortcut: bool, maps: int) -> None:
    x, r = torch.randn(2, 4, 256, 12, 12)
    gate = _gate(kind, 256, 16)
    weights = [t.float() if isinstance(t, Tensor) else t for t in gate]
    norm = Norm(torch.ones(256), torch.zeros(256), None, None, training=True)
    x.requires_grad_()
    r = r.clone() if shortcut else None  # of a storage of its own

    def run(tail: Callable[..., Tensor]) -> float:
        small = sum(t.nbytes for t in (*weights, *norm) if isinstance(t, Tensor))
        bytes_ = _saved_bytes(lambda: tail(x.clone(), r, type(gate)(*weights), norm, Act(act)))
        return (bytes_ - small) / x.nbytes

    assert maps < run(fused_tail) <= maps + 0.1
    assert run(plain_tail) > run(fused_tail) + 0.5


class _Walks(TorchDispatchMode):
    """Counts the operations that read or write a whole map."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.count = numel, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = func.is_view or func._schema.name in ("aten::detach", "aten::empty_like", "aten::_to_copy")
        tensors = [t for t in (*args, out) if isinstance(t, Tensor)]
        self.count += not views and any(t.numel() == self.numel for t in tensors)
        return out


def _walks(tail: Callable[..., Tensor], kind: str) -> tuple[int, int]:
    torch.manual_seed(11)
    case = Case(kind, "train", Act("relu"), (2, 8, 5, 5))
    x, shortcut = (case.maps[i].clone().requires_grad_() for i in (0, 2))
    norm = Norm(case.weight.abs().requires_grad_(), case.bias.requires_grad_(), None, None, training=True)
    with _Walks(x.numel()) as forward:
        out = tail(x, shortcut, case.gate, norm, case.act)
    with _Walks(x.numel()) as backward:
        torch.autograd.grad(out, [x, shortcut, norm.weight, norm.bias], case.maps[1])
    return forward.count, backward.count


@pytest.mark.parametrize(("kind", "forward", "backward"), [("se", 9, 9), ("eca", 9, 9), ("cbam", 13, 24)])
def test_eager_walks_are_counted(kind: str, forward: int, backward: int) -> None:
    """Operations of eager PyTorch that touch a whole map, each one walk; a compiler puts them together."""
    assert _walks(fused_tail, kind) == (forward, backward)


# Compilers


@functools.cache
def _cases() -> list[tuple[Case, str]]:
    torch.manual_seed(12)
    kinds = (("se", "elu"), ("eca-circular", "selu"), ("cbam", "relu"))
    return [(Case(kind, "train", Act(act), (2, 8, 6, 6)), kind) for kind, act in kinds]


@pytest.mark.parametrize("index", range(3))
def test_compiled_in_one_graph_for_training_and_inference(index: int) -> None:
    torch._dynamo.reset()
    case, _ = _cases()[index]
    compiled = torch.compile(fused_tail, fullgraph=True)
    _close(case.run(compiled), case.run(plain_tail), 1e-9)
    with torch.no_grad():
        x, _, shortcut = case.maps
        norm = Norm(case.weight, case.bias, torch.zeros(8).double(), torch.ones(8).double(), training=False)
        arguments = (x, shortcut, case.gate, norm, case.act)
        torch.testing.assert_close(compiled(*arguments), plain_tail(*arguments))


def test_compiled_with_all_ties_and_negative_gamma() -> None:
    torch._dynamo.reset()
    torch.manual_seed(13)
    compiled = torch.compile(fused_tail, fullgraph=True)
    case = Case("cbam", "train", Act("relu"), (2, 8, 6, 6))
    for weight in (torch.zeros(8, dtype=torch.float64), case.weight):
        case.weight = weight
        _close(case.run(compiled), case.run(plain_tail), 1e-9)


def test_compiled_for_any_batch() -> None:
    torch._dynamo.reset()
    torch.manual_seed(14)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(fused_tail, fullgraph=True, backend=backend)
    gate = _gate("cbam", 8)
    for batch in (5, 4, 9):
        x = torch.randn(batch, 8, 6, 6, dtype=torch.float64)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x, x, gate), plain_tail(x, x, gate))
    assert len(graphs) == 1


def _moved(tail: Callable[..., Tensor], kind: str, *, training: bool) -> float:
    """What the compiler's own count says is moved, in maps."""
    torch._dynamo.reset()
    torch.manual_seed(15)
    x, shortcut, dout = (t.contiguous(memory_format=torch.channels_last) for t in torch.randn(3, 4, 256, 12, 12))
    gate = _gate(kind, 256, 16)
    gate = gate._replace(**{n: t.float() for n, t in gate._asdict().items() if isinstance(t, Tensor)})
    norm = Norm(torch.ones(256), torch.zeros(256), torch.zeros(256), torch.ones(256), training)
    leaves = [t.requires_grad_(training) for t in (x, shortcut, *norm[:2], *gate) if isinstance(t, Tensor)]
    metrics.reset()
    log = inductor_metrics_log  # it counts while someone listens
    level = log.level
    log.setLevel(logging.INFO)
    # Without the cache, a graph known from before would not be counted.
    with inductor_config.patch(force_disable_caches=True), torch.set_grad_enabled(training):
        out = torch.compile(tail, fullgraph=True)(x, shortcut, gate, norm, Act("relu"))
        if training:
            torch.autograd.grad(out, leaves, dout)
    log.setLevel(level)
    return metrics.num_bytes_accessed / x.nbytes


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "infer", "train"), [("se", 4.2, 15.6), ("cbam", 7.4, 28.2)])
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_a_compiler_moves_this_many_maps(kind: str, infer: float, train: float) -> None:
    assert _moved(fused_tail, kind, training=False) <= infer
    assert _moved(fused_tail, kind, training=True) <= train < _moved(plain_tail, kind, training=True)


# Errors


def _arguments() -> Iterator[tuple[dict[str, Any], type[Exception], str]]:
    x = torch.randn(2, 6, 3, 3)
    gate = SEGate(torch.randn(2, 6), None, torch.randn(6, 2), None)
    yield {"x": x[0], "gate": gate}, InvalidInput, r"shape \(b, c, h, w\); got torch.float32 of shape \(6, 3, 3\)"
    yield {"x": x.long(), "gate": gate}, InvalidInput, "got torch.int64"
    yield {"x": x, "gate": gate, "shortcut": x[:1]}, InvalidInput, r"got torch.float32 of shape \(1, 6, 3, 3\)"
    yield {"x": x, "gate": gate, "shortcut": x.double()}, InvalidInput, "got torch.float64"
    yield {"x": x[:, :4], "gate": gate}, InvalidInput, "made for 6 channels"
    yield {"x": x, "gate": gate, "act": Act("rleu")}, UnknownChoice, "did you mean 'relu'"
    yield {"x": x, "gate": gate, "act": Act("elu", -1.0)}, InvalidOption, "alpha of an ELU must be above 0"
    yield {"x": x, "gate": gate, "norm": Norm(None, None, None, None, False)}, InvalidOption, "needs running_mean"
    one = {"x": x[:1, :, :1, :1], "gate": gate, "norm": Norm(None, None, None, None, True)}
    yield one, InvalidInput, "Expected more than 1 value per channel"


@pytest.mark.parametrize(("arguments", "error", "message"), list(_arguments()))
def test_what_does_not_fit_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    for tail in (fused_tail, plain_tail):
        with pytest.raises(error, match=message):
            tail(**({"shortcut": None} | arguments))


def test_an_unknown_rule_for_ties_is_named() -> None:
    with pytest.raises(UnknownChoice, match="did you mean 'first'"):
        fused_tail(torch.randn(1, 2, 3, 3), None, ECAGate(torch.ones(1, 1, 3), None, 2), ties="frist")
