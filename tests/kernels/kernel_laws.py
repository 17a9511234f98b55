"""What must hold of the Triton kernels, on a GPU or in Triton's interpreter: no tests by themselves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from ferattn.kernels import ACTS, Act, ECAGate, Norm, explain, fused_tail, plain_tail, use
from kernels.test_tail import KINDS, LAYOUTS, SIZES, Case, _first_cbam, _gate

pytest.importorskip("triton", reason="triton is not installed")

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MODES = ("none", "eval", "train")
Drawn = tuple[tuple[int, ...], str, str, str, str, torch.dtype]


def grid() -> Iterator[Drawn]:
    """Every shape, kind and mode; layout, activation and dtype take turns, each at another pace."""
    turns = itertools.count()
    for shape, kind, mode in itertools.product(SIZES, KINDS, MODES):
        turn = next(turns)
        layout, act, dtype = (tuple(of)[turn % len(of)] for of in (LAYOUTS, ACTS, FLOATS))
        yield shape, kind, mode, layout, act, FLOATS[turn // 7 % 3] if turn % 3 else dtype


def named(drawn: Drawn) -> str:
    shape, *words, dtype = drawn
    return "-".join(["x".join(str(n) for n in shape), *words, str(dtype).removeprefix("torch.")]).replace(" ", "_")


@contextmanager
def poisoned() -> Iterator[None]:
    """New tensors hold NaN, or the largest integer, until something is written."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def by_kernels(*arguments: Any, **options: Any) -> Tensor:
    return fused_tail(*arguments, **options, path="triton")


def compare(
    case: Case, dtype: torch.dtype, device: str, layout: str = "contiguous", factor: float = 2, **options: Any
) -> None:
    """Every number at most twice as far from float64 as PyTorch's own, and the same bits every time."""
    case.maps = [m.to(dtype).double() for m in case.maps]
    for name in ("weight", "bias"):
        setattr(case, name, getattr(case, name).float().double())
    case.gate = case.gate._replace(
        **{name: t.float().double() for name, t in case.gate._asdict().items() if isinstance(t, Tensor)}
    )
    how = {"layout": LAYOUTS[layout]}
    exact = case.run(plain_tail, **how)
    with poisoned():
        ours = case.run(by_kernels, dtype, torch.float32, device=device, **how, **options)
        again = case.run(by_kernels, dtype, torch.float32, device=device, **how, **options)
    theirs = case.run(plain_tail, dtype, device=device, **how)
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        found = ours[name]
        assert torch.equal(found, again[name]), f"{name} does not repeat to the bit"
        assert found.shape == value.shape
        error, own = ((of[name].cpu().double() - value).abs() for of in (ours, theirs))
        # A single draw can be a lucky one: eight roundings of a float32 are always allowed, and one of the dtype.
        allowed = factor * own.max() + 8 * torch.finfo(torch.float32).eps * (value.abs().max() + 1e-3)
        if dtype != torch.float32:
            allowed = allowed + torch.finfo(dtype).eps * value.abs()
        if dtype == torch.bfloat16 and device == "cpu" and name in ("dx", "dshortcut"):
            # The interpreter cuts bfloat16 off instead of rounding it: the output, dz made of it, and dx made of dz.
            allowed = allowed + torch.finfo(dtype).eps * value.abs().max()
        assert (error <= allowed).all(), (name, error.max().item(), own.max().item(), value.abs().max().item())


def check_inference(
    case: Case, dtype: torch.dtype, device: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output without gradients, in several launches and in one."""
    from ferattn.kernels.triton import launch

    case.maps = [m.to(dtype).double() for m in case.maps]
    outs: dict[str, Tensor] = {}

    def kept(name: str, tail: Any) -> Any:
        def run(x: Tensor, *rest: Any, **options: Any) -> Tensor:
            with torch.no_grad(), poisoned():
                outs[name] = tail(x, *rest, **options)
            return plain_tail(x, *rest)

        return run

    case.run(kept("exact", plain_tail), layout=LAYOUTS[layout])
    case.run(kept("theirs", plain_tail), dtype, device=device, layout=LAYOUTS[layout])
    names = launches(monkeypatch)
    for limit in (0, launch.ONE_LAUNCH_BYTES):
        monkeypatch.setattr(launch, "ONE_LAUNCH_BYTES", limit)
        weights = torch.float32 if dtype == torch.float32 else dtype
        case.run(kept("ours", by_kernels), dtype, weights, device=device, layout=LAYOUTS[layout])
        assert ("sample_kernel" in names) == (limit > 0 and not isinstance(case.gate, ECAGate))
        error, own = ((outs[name].cpu().double() - outs["exact"]).abs() for name in ("ours", "theirs"))
        allowed = 2 * own.max() + 1e-6 * outs["exact"].abs().max() + torch.finfo(dtype).eps * outs["exact"].abs()
        assert (error <= allowed).all(), (limit, error.max().item(), own.max().item())


def check_layout(case: Case, dtype: torch.dtype, device: str) -> None:
    """The output lies in memory as the map does."""
    for layout in ("contiguous", "channels_last"):
        found = case.run(by_kernels, dtype, torch.float32, layout=LAYOUTS[layout], device=device)
        kind = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        assert found["out"].is_contiguous(memory_format=kind)
        assert found["dx"].is_contiguous(memory_format=kind)


def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are launched from now on."""
    from ferattn.kernels.triton import launch

    names: list[str] = []
    run = launch.launch

    def counted(kernel: Any, *arguments: Any, **constants: Any) -> None:
        names.append(kernel.fn.__name__)
        run(kernel, *arguments, **constants)

    monkeypatch.setattr(launch, "launch", counted)
    return names


def small_case(kind: str, mode: str = "train", act: str = "relu", shape: tuple[int, ...] = (2, 6, 4, 5)) -> Case:
    return Case(kind, mode, Act(act, 0.7), shape)


def _integers(kind: str, mode: str) -> Case:
    """Maps of few values, so that many places tie, and all numbers exact in float32."""
    torch.manual_seed(5)
    case = Case(kind, mode, Act("relu"), (2, 6, 4, 4))
    case.maps[0] = case.maps[0].round().clamp(-1, 1)
    return case


def _near(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name].cpu().double(), value, rtol=2e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def check_shared_ties(kind: str, mode: str, device: str) -> None:
    """Ties within maps and across channels; all of them behind zeros for gamma; negative gammas."""
    case = _integers(kind, mode)
    for weight in ([0.5, -1, 2, 1, -0.5, 0], [0] * 6):
        case.weight = torch.tensor(weight, dtype=torch.float64)
        _near(case.run(by_kernels, torch.float32, device=device), case.run(plain_tail))


def check_first_ties(mode: str, device: str) -> None:
    case = _integers("cbam", mode)
    for weight in (case.weight.abs(), torch.zeros(6, dtype=torch.float64)):
        case.weight, case.bias = weight, case.bias * (weight != 0)
        ours, expected = case.run(by_kernels, torch.float32, device=device, ties="first"), case.run(_first_cbam)
        for of in (ours, expected):
            del of["mean"], of["var"]
        _near(ours, expected)


def check_no_numbers(kind: str, mode: str, value: float, device: str) -> None:
    torch.manual_seed(7)
    case = Case(kind, mode, Act("relu"), (3, 6, 4, 4))
    case.maps[0][1, 2, 0, 3] = value
    ours, theirs = case.run(by_kernels, torch.float32, device=device), case.run(plain_tail)
    for name in ("out", "mean"):
        torch.testing.assert_close(ours[name].cpu().double(), theirs[name], equal_nan=True, rtol=1e-5, atol=1e-5)
    for name in theirs:  # no gradient of ours is finite where PyTorch's is not
        assert not (ours[name].cpu().isfinite() & ~theirs[name].isfinite()).any(), name


def check_strided_weights(kind: str, mode: str, device: str) -> None:
    """Weights need not be contiguous: ``model.to(memory_format=torch.channels_last)`` turns CBAM's filter."""
    torch.manual_seed(8)
    case = Case(kind, mode, Act("relu"), (2, 6, 4, 4))

    def turned(run: Any) -> Any:
        def tail(x: Tensor, shortcut: Tensor, gate: Any, norm: Any, act: Act) -> Tensor:
            small = {name: t for name, t in gate._asdict().items() if isinstance(t, Tensor)}
            gate = gate._replace(
                **{name: t.transpose(0, -1).contiguous().transpose(0, -1) for name, t in small.items()}
            )
            if norm is not None:
                norm = norm._replace(weight=norm.weight.repeat_interleave(2)[::2])
            return run(x, shortcut, gate, norm, act)

        return tail

    _near(case.run(turned(by_kernels), torch.float32, device=device), case.run(turned(plain_tail)))


def check_large_mean(device: str) -> None:
    """Channel means of 15 deviations, in float32; on a CPU PyTorch's batch norm sums in float64."""
    for kind, shape in (("se", (4, 8, 7, 7)), ("cbam", (2, 8, 5, 5))):
        torch.manual_seed(4)
        case = Case(kind, "train", Act("relu"), shape)
        case.maps[0] = case.maps[0] + 30
        compare(case, torch.float32, device, factor=4 if device == "cpu" else 2)


def check_launches(kind: str, counts: tuple[int, ...], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ferattn.kernels.triton import launch

    names = launches(monkeypatch)
    found = []
    for mode, gradients in (("eval", False), ("eval", True), ("train", True)):
        case = small_case(kind, mode)
        monkeypatch.setattr(launch, "ONE_LAUNCH_BYTES", 0)
        with torch.set_grad_enabled(gradients):
            before = len(names)
            marks: list[int] = []

            def tail(*arguments: Any, marks: list[int] = marks, **options: Any) -> Tensor:
                out = by_kernels(*arguments, **options)
                marks.append(len(names))
                return out.requires_grad_()

            with pytest.raises(RuntimeError) if not gradients else nullcontext():  # nothing to go back through
                case.run(tail, torch.float32, device=device)
        found.append(marks[0] - before)
    assert (*found, len(names) - marks[0]) == counts, names


def check_saved(kind: str, act: str, shortcut: bool, maps: int, device: str) -> None:
    """So many maps, a bit for each value behind a ReLU, to the byte, and small tensors."""
    torch.manual_seed(11)
    x, r = torch.randn(2, 2, 64, 16, 16, device=device)
    gate, c = _gate(kind, 64, 4), 64
    weights = [t.float().to(device) if isinstance(t, Tensor) else t for t in gate]
    norm = Norm(torch.ones(c, device=device), torch.zeros(c, device=device), None, None, training=True)
    x.requires_grad_()
    r = r.clone() if shortcut else None
    given = {t.untyped_storage().data_ptr() for t in (*weights, *norm) if isinstance(t, Tensor)}
    saved: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.setdefault(t.data_ptr(), t), lambda t: t):
        out = by_kernels(x.clone(), r, type(gate)(*weights), norm, Act(act))
    found = [t for at, t in saved.items() if at not in given]
    assert sum(t.nbytes for t in found if t.shape == x.shape) == maps * x.nbytes
    assert any(t.data_ptr() == out.data_ptr() for t in found) == (act == "elu")
    assert sum(t.nbytes for t in found if t.dtype == torch.uint8) == (x.numel() // 8 if act == "relu" else 0)
    assert sum(t.nbytes for t in found if t.shape != x.shape and t.dtype != torch.uint8) <= 0.1 * x.nbytes


def _float_gate(kind: str, c: int, device: str) -> Any:
    gate = _gate(kind, c)
    return gate._replace(
        **{name: t.float().to(device) for name, t in gate._asdict().items() if isinstance(t, Tensor)}
    )


def check_bits(kind: str, shape: tuple[int, ...], layout: str, device: str) -> None:
    """The bits that the forward kernel writes are those of the output that it writes, and nothing is beside them."""
    from ferattn.kernels.parts import weights_of
    from ferattn.kernels.triton.bits import packed
    from ferattn.kernels.triton.operators import tail

    torch.manual_seed(12)
    x, shortcut = (LAYOUTS[layout](t.to(device).half()) for t in torch.randn(2, *shape))
    shortcut = torch.where(shortcut > 1, float("nan"), shortcut)
    gate = _float_gate(kind, shape[1], device)
    name, flag, weights = weights_of(gate)
    with torch.no_grad(), poisoned():
        pool, peak = x.float().mean((2, 3)), x.float().amax((2, 3)) if kind == "cbam" else None
        small = (None, None, None, None, pool, peak, *weights, None)
        out, *_, bits = tail(x, shortcut, *small, name, flag, False, 1e-5, "relu", 1.0, "shared", True)
    last = x.is_contiguous(memory_format=torch.channels_last)
    assert last == (layout == "channels_last")
    assert 0 < out.isnan().sum() < out.numel() / 2
    assert torch.equal(bits, packed(out, last=last))


def check_threshold(device: str) -> None:
    """Gradients behind zeros of either sign, NaN, infinities, and what only rounding makes zero."""
    x, shortcut = torch.zeros(2, 1, 2, 1, 8, dtype=torch.float16, device=device)
    shortcut[0, 0, 0] = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1.0, -1.0, 6e-8])
    x[0, 1, 0] = torch.tensor([6e-8, -6e-8, 0.0, -0.0, 1.0, -1.0, 6e-8, 0.25])
    shortcut[0, 1, 0, 6:] = torch.tensor([6e-8, -0.125])
    gate = ECAGate(torch.zeros(1, 1, 3, device=device), torch.full((1,), -3.0, device=device), 2)
    found = []
    for tail, dtype in ((by_kernels, torch.float16), (plain_tail, torch.float16)):
        given = shortcut.to(dtype).clone().requires_grad_()
        weights = gate if tail is by_kernels else gate._replace(weight=gate.weight.half(), bias=gate.bias.half())
        out = tail(x, given, weights, None, Act("relu"))
        found.append(torch.autograd.grad(out, given, torch.full_like(out, 3)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][0][0, 0, 0].tolist() == [0, 0, 3, 3, 0, 3, 0, 3]
    assert found[0][0][0, 1, 0, :5].tolist() == [0, 0, 0, 0, 3]


def check_saved_layout(last: bool, device: str) -> None:
    """What hooks give back of the saved maps need not lie as it lay."""
    torch.manual_seed(13)
    forms = torch.channels_last, torch.contiguous_format
    x, shortcut, dout = (
        t.to(device).contiguous(memory_format=forms[not last]).requires_grad_() for t in torch.randn(3, 2, 8, 4, 4)
    )
    gate = _float_gate("cbam", 8, device)
    found = []
    for hooks in (False, True):
        turned = torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.contiguous(memory_format=forms[last]) if t.shape == x.shape else t, lambda t: t
        )
        with turned if hooks else nullcontext():
            out = by_kernels(x, shortcut, gate, None, Act("relu"))
        found.append(torch.autograd.grad(out, [x, shortcut], dout))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def check_second_derivative(device: str) -> None:
    torch.manual_seed(14)
    maps, gate = torch.randn(2, 2, 4, 3, 3, device=device), _float_gate("se", 4, device)
    second = []
    for tail in (by_kernels, plain_tail):
        x, shortcut = (m.clone().requires_grad_() for m in maps)
        out = tail(x, shortcut, gate, None, Act("relu"))
        (dx,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(dx.square().sum(), [x, shortcut]))
    for ours, theirs in zip(*second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def check_paths(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = launches(monkeypatch)
    gate = ECAGate(torch.ones(1, 1, 3, device=device), None, 6)
    x = torch.randn(2, 6, 4, 4, device=device)
    expected = plain_tail(x, x, gate)
    for path, forced, launched in (
        ("triton", "auto", True), ("auto", "triton", True), ("plain", "triton", False), ("auto", "plain", False),
        ("triton", "plain", True),
    ):  # fmt: skip
        names.clear()
        with use(forced):
            torch.testing.assert_close(fused_tail(x, x, gate, path=path), expected)
            assert explain(x, x, gate).path == ("triton" if forced == "triton" else "plain")
        assert bool(names) == launched, (path, forced)
    with use("triton"):
        assert str(explain(x.to(memory_format=torch.channels_last), x, gate)).startswith(
            f"triton: channels_last float32 on {device}"
        )
