"""The formulas against literal loops in float64: every sum, maximum, tap and padding written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ferattn import reference
from ferattn.errors import InvalidInput

B, C, R, H, W = 2, 6, 3, 5, 4


def _sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def _weights(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "x": draw(B, C, H, W),
        "w1": draw(R, C),
        "b1": draw(R),
        "w2": draw(C, R),
        "b2": draw(C),
        "taps": draw(1, 1, 3),
        "conv": draw(1, 2, 3, 3),
        "conv_bias": draw(1),
    }


def _mlp(p: dict[str, torch.Tensor], z: list[float]) -> list[float]:
    hidden = [max(0.0, sum(p["w1"][r, c].item() * z[c] for c in range(C)) + p["b1"][r].item()) for r in range(R)]
    return [sum(p["w2"][c, r].item() * hidden[r] for r in range(R)) + p["b2"][c].item() for c in range(C)]


def _mean_over_space(x: torch.Tensor, b: int, c: int) -> float:
    return sum(x[b, c, i, j].item() for i in range(H) for j in range(W)) / (H * W)


def _max_over_space(x: torch.Tensor, b: int, c: int) -> float:
    return max(x[b, c, i, j].item() for i in range(H) for j in range(W))


def _se_loops(p: dict[str, torch.Tensor]) -> torch.Tensor:
    x, out = p["x"], p["x"].clone()
    for b in range(B):
        logits = _mlp(p, [_mean_over_space(x, b, c) for c in range(C)])
        for c in range(C):
            out[b, c] *= _sigmoid(logits[c])
    return out


def _eca_loops(p: dict[str, torch.Tensor], *, circular: bool) -> torch.Tensor:
    x, out = p["x"], p["x"].clone()
    for b in range(B):
        z = [_mean_over_space(x, b, c) for c in range(C)]
        for c in range(C):
            logit = 0.0
            for tap in range(3):
                source = c + tap - 1
                if circular:
                    logit += p["taps"][0, 0, tap].item() * z[source % C]
                elif 0 <= source < C:
                    logit += p["taps"][0, 0, tap].item() * z[source]
            out[b, c] *= _sigmoid(logit)
    return out


def _channel_loops(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    out = x.clone()
    for b in range(B):
        mean = _mlp(p, [_mean_over_space(x, b, c) for c in range(C)])
        peak = _mlp(p, [_max_over_space(x, b, c) for c in range(C)])
        for c in range(C):
            out[b, c] *= _sigmoid(mean[c] + peak[c])
    return out


def _spatial_gate_loops(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    gate = torch.zeros(B, 1, H, W, dtype=torch.float64)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                logit = p["conv_bias"].item()
                for di in range(3):
                    for dj in range(3):
                        si, sj = i + di - 1, j + dj - 1
                        if 0 <= si < H and 0 <= sj < W:
                            column = [x[b, c, si, sj].item() for c in range(C)]
                            logit += p["conv"][0, 0, di, dj].item() * (sum(column) / C)
                            logit += p["conv"][0, 1, di, dj].item() * max(column)
                gate[b, 0, i, j] = _sigmoid(logit)
    return gate


def _mlp_arguments(p: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return p["w1"], p["b1"], p["w2"], p["b2"]


def test_se_is_its_equations() -> None:
    p = _weights()
    torch.testing.assert_close(reference.se(p["x"], *_mlp_arguments(p)), _se_loops(p), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("circular", [False, True])
def test_eca_is_its_equation(circular: bool) -> None:
    p = _weights()
    ours = reference.eca(p["x"], p["taps"], channels=C, circular=circular)
    torch.testing.assert_close(ours, _eca_loops(p, circular=circular), rtol=1e-12, atol=1e-12)


def test_channel_gate_is_its_equation() -> None:
    p = _weights()
    ours = reference.channel_gate(p["x"], *_mlp_arguments(p))
    torch.testing.assert_close(ours, _channel_loops(p, p["x"]), rtol=1e-12, atol=1e-12)


def test_spatial_gate_is_its_equation() -> None:
    p = _weights()
    ours = reference.spatial_gate(p["x"], p["conv"], p["conv_bias"])
    torch.testing.assert_close(ours, p["x"] * _spatial_gate_loops(p, p["x"]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("refined", [True, False])
def test_cbam_is_its_equations(refined: bool) -> None:
    p = _weights()
    gated = _channel_loops(p, p["x"])
    expected = gated * _spatial_gate_loops(p, gated if refined else p["x"])
    ours = reference.cbam(p["x"], *_mlp_arguments(p), p["conv"], p["conv_bias"], refined=refined)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_a_norm_goes_between_the_convolution_and_the_sigmoid() -> None:
    p = _weights()
    plain = reference.spatial_attention(p["x"], p["conv"], p["conv_bias"])
    shifted = reference.spatial_attention(p["x"], p["conv"], p["conv_bias"], norm=lambda logits: logits + 1)
    torch.testing.assert_close(torch.logit(shifted), torch.logit(plain) + 1)


def test_gradients_against_finite_differences() -> None:
    p = {name: value.requires_grad_() for name, value in _weights().items()}
    mlp = _mlp_arguments(p)
    assert torch.autograd.gradcheck(reference.se, (p["x"], *mlp))
    assert torch.autograd.gradcheck(lambda x, taps: reference.eca(x, taps, channels=C), (p["x"], p["taps"]))
    assert torch.autograd.gradcheck(reference.cbam, (p["x"], *mlp, p["conv"], p["conv_bias"]))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(C, H, W), r"shape \(b, c, h, w\); got torch.float32 of shape \(6, 5, 4\)"),
        (torch.ones(B, C, H, W, dtype=torch.int64), "floating-point feature map"),
        (torch.randn(B, C + 1, H, W), "made for 6 channels"),
    ],
)
def test_what_is_no_feature_map_is_named(x: torch.Tensor, message: str) -> None:
    p = {name: value.float() for name, value in _weights().items()}
    for gate in (
        lambda: reference.se(x, *_mlp_arguments(p)),
        lambda: reference.eca(x, p["taps"], channels=C),
        lambda: reference.cbam(x, *_mlp_arguments(p), p["conv"]),
    ):
        with pytest.raises(InvalidInput, match=message):
            gate()


class _Operations(TorchDispatchMode):
    """The operations whose result is as large as a map, its memory format and whether it is a mask of booleans."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.seen = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() == self.size and 0 not in out.stride():
            last = out.is_contiguous(memory_format=torch.channels_last)
            self.seen.append((function.overloadpacket.__name__, last, out.dtype == torch.bool))
        return out


def _blocks(p: dict[str, torch.Tensor]):
    return {
        "se": lambda x: reference.se(x, p["w1"], p["b1"], p["w2"], p["b2"]),
        "eca": lambda x: reference.eca(x, p["taps"], channels=C),
        "cbam": lambda x: reference.cbam(x, p["w1"], p["b1"], p["w2"], p["b2"], p["conv"], p["conv_bias"]),
    }


@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pools_cost_little_on_the_way_back(name: str, dtype: torch.dtype) -> None:
    """No map is divided, none loses the memory format of x, none is a mask of booleans: a CPU is slow at those."""
    p = {key: value.to(dtype) for key, value in _weights().items()}
    x = p["x"].to(memory_format=torch.channels_last).requires_grad_()
    out = _blocks(p)[name](x)
    with _Operations(x.numel()) as backward:
        out.backward(torch.ones_like(out))
    assert ("mul", True, False) in backward.seen
    assert not [entry for entry in backward.seen if entry[0] == "div" or not entry[1] or entry[2]]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:FutureWarning")
def test_what_is_written_down_has_means_and_maxima() -> None:
    """Whoever reads an exported model knows these over the map as pooling."""
    p = {key: value.float() for key, value in _weights().items()}
    block = torch.nn.Module()
    block.forward = _blocks(p)["cbam"]  # type: ignore[method-assign]
    x = p["x"].requires_grad_()
    exported = str(torch.export.export(block, (x,)).graph)
    traced = str(torch.jit.trace(_blocks(p)["cbam"], (x,)).graph)
    for graph, separator in ((exported, "."), (traced, "::")):
        assert graph.count(f"aten{separator}mean") == graph.count(f"aten{separator}amax") == 2
        assert "sum" not in graph
