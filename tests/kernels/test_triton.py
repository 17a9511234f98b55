"""The Triton kernels without a GPU: interpreted, as operators, and which way a tail takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ferattn.errors import InvalidOption, UnknownChoice
from ferattn.kernels import Act, CBAMGate, ECAGate, Gate, Norm, SEGate, dispatch, explain, fused_tail, plain_tail, use
from ferattn.kernels.parts import weights_of
from kernels.test_tail import KINDS, Case, _close

pytest.importorskip("triton", reason="triton is not installed")


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version(package).split(".")[:2])


def _interpreted(*options: str) -> None:
    """In a process of its own, because Triton decides when it is imported."""
    if _version("triton") < (3, 7) and _version("numpy") >= (2, 4):
        pytest.skip("this Triton's interpreter fails at loops with NumPy 2.4 and later")
    file = Path(__file__).parent / "interpreted.py"
    root = file.parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options, str(file)]
    path = os.pathsep.join([str(root / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_kernels_in_the_interpreter() -> None:
    _interpreted("-m", "not slow")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kernels_in_the_interpreter_on_a_grid() -> None:
    _interpreted("-m", "slow")


# The operators, which off CUDA compute by the plain passes


def _through(x: Tensor, shortcut: Tensor | None, gate: Gate, norm: Norm | None, act: Act, **how: Any) -> Tensor:
    from ferattn.kernels.triton.operators import tail_through_operators

    return tail_through_operators(x, shortcut, gate, norm, act, how.get("ties", "shared"))


@pytest.mark.parametrize("kind", KINDS)
def test_operators_have_autograds_gradients(kind: str) -> None:
    torch.manual_seed(0)
    for mode, act in zip(("none", "eval", "train"), ("identity", "silu", "relu"), strict=True):
        case = Case(kind, mode, Act(act), (2, 6, 4, 3), shortcut=act != "silu")
        _close(case.run(_through), case.run(plain_tail))


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_operators_keep_pytorchs_contract(kind: str) -> None:
    from ferattn.kernels.triton import operators

    torch.manual_seed(1)
    case = Case(kind, "train", Act("relu"), (2, 6, 4, 3))
    x, shortcut = case.maps[0], case.maps[2]
    peak = 2 if kind == "cbam" else 0
    arguments = (x, case.weight, torch.zeros(6).double(), torch.ones(6).double(), None, 0.1, True, peak)
    mean, var, pool, top, _ = operators.tail_statistics(*arguments)
    torch.library.opcheck(torch.ops.ferattn.tail_statistics.default, arguments)

    def leaf(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.clone().requires_grad_()

    name, flag, weights = weights_of(case.gate)
    small = (leaf(case.weight), leaf(case.bias), mean, var, pool, top if peak else None, *map(leaf, weights), None)
    for act in ("relu", "selu"):
        options = (name, flag, True, 1e-5, act, 1.0, "shared")
        arguments = (leaf(x), leaf(shortcut), *small, *options, True)
        torch.library.opcheck(torch.ops.ferattn.tail.default, arguments)
        out, *rest, bits = (t.detach() for t in operators.tail(*arguments))
        assert bits.shape == ((2, 6, 2) if act == "relu" else (0,))
        kept = (bits if act == "relu" else out, *(None if t is None else t.detach() for t in small), *rest)
        torch.library.opcheck(torch.ops.ferattn.tail_backward.default, (case.maps[1], x, *kept, *options))


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
def test_operators_run_twice_in_eval_mode_before_they_go_back(kind: str) -> None:
    torch.manual_seed(5)
    case = Case(kind, "eval", Act("relu"), (2, 6, 4, 3))

    def twice(tail: Any) -> Any:
        return lambda x, *rest: tail(x, *rest) + tail(x.flip(0), *rest)

    _close(case.run(twice(_through)), case.run(twice(plain_tail)))


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
def test_operators_are_compiled_in_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(2)
    compiled = torch.compile(_through, fullgraph=True)
    case = Case(kind, "train", Act("relu"), (2, 6, 4, 3))
    _close(case.run(compiled), case.run(plain_tail), 1e-9)
    with torch.no_grad():
        norm = Norm(case.weight, case.bias, torch.zeros(6).double(), torch.ones(6).double(), training=False)
        arguments = (case.maps[0], case.maps[2], case.gate, norm, case.act)
        torch.testing.assert_close(compiled(*arguments), plain_tail(*arguments))


def test_operators_are_compiled_for_any_batch() -> None:
    torch._dynamo.reset()
    torch.manual_seed(3)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(_through, fullgraph=True, backend=backend)
    case = Case("cbam", "none", Act("relu"), (2, 8, 6, 6))
    for batch in (5, 4, 9):
        x = torch.randn(batch, 8, 6, 6, dtype=torch.float64)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(
            compiled(x, x, case.gate, None, case.act), plain_tail(x, x, case.gate, None, case.act)
        )
    assert len(graphs) == 1
    assert "ferattn" in str(graphs[0].graph)


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (3, 8, 1, 1), (1, 17, 5, 5), (2, 3, 3, 8)])
def test_bits_are_one_for_each_value(shape: tuple[int, ...]) -> None:
    from ferattn.kernels.triton.bits import packed, unpacked

    torch.manual_seed(6)
    out = torch.randn(shape).relu()
    out.view(-1)[:3] = torch.tensor([float("nan"), -0.0, float("inf")])
    for last in (True, False):
        bits = packed(out, last=last)
        (b, c, h, w), width = shape, -(-(shape[1] if last else shape[2] * shape[3]) // 8)
        assert bits.shape == ((b, h, w, width) if last else (b, c, width))
        passed = torch.ops.aten.threshold_backward(torch.ones_like(out), out, 0)
        assert torch.equal(unpacked(bits, out), passed)
        expected = torch.zeros_like(bits).view(b, -1, width)
        for sample, channel, row, column in passed.nonzero().tolist():
            place = row * w + column
            line, position = (place, channel) if last else (channel, place)
            expected[sample, line, position // 8] += 2 ** (position % 8)
        assert torch.equal(bits, expected.view_as(bits))


def test_second_derivatives_go_through_the_operators() -> None:
    torch.manual_seed(4)
    for kind, act in (("se", "relu"), ("cbam", "silu"), ("eca", "identity")):
        case = Case(kind, "train", Act(act), (2, 4, 3, 3))
        second = []
        for tail in (_through, plain_tail):
            x, shortcut = case.maps[0].clone().requires_grad_(), case.maps[2].clone().requires_grad_()
            norm = Norm(case.weight, case.bias, None, None, training=True)
            out = tail(x, shortcut, case.gate, norm, case.act)
            (dx,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
            second.append(torch.autograd.grad(dx.square().sum(), [x, shortcut], allow_unused=True))
        for ours, theirs in zip(*second, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("gate", "flops"),
    [
        (SEGate(torch.randn(2, 6), None, torch.randn(6, 2), None), 2 * 2 * (6 * 2 * 2)),
        (ECAGate(torch.randn(1, 1, 3), None, 6), 2 * 2 * 6 * 3),
        (
            CBAMGate(torch.randn(2, 6), None, torch.randn(6, 2), None, torch.randn(1, 2, 7, 7), None),
            2 * 2 * (2 * 6 * 2 * 2) + 2 * 2 * 5 * 4 * 2 * 49,
        ),
    ],
)
def test_floating_point_operations_are_counted(gate: Gate, flops: int) -> None:
    x = torch.randn(2, 6, 5, 4, requires_grad=True)
    with FlopCounterMode(display=False) as ours:
        out = _through(x, None, gate, None, Act())
    assert ours.get_total_flops() == flops
    with FlopCounterMode(display=False) as reference:
        plain_tail(x, None, gate)
    assert flops == reference.get_total_flops()
    with FlopCounterMode(display=False) as ours:
        out.sum().backward()
    assert ours.get_total_flops() == 2 * flops


def test_measure_counts_the_operators() -> None:
    from ferattn.measure import count

    class Tail(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gate = SEGate(torch.ones(2, 6), None, torch.ones(6, 2), None)
            return _through(x, x, gate, None, Act("relu"))

    assert count(Tail(), (6, 5, 4)).flops == 2 * (6 * 2 * 2)


def test_an_exported_program_does_not_need_ferattn() -> None:
    gate = ECAGate(torch.ones(1, 1, 3), None, 6)

    class Tail(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return fused_tail(x, x, gate, act=Act("relu"))

    x = torch.randn(2, 6, 5, 4)
    program = torch.export.export(Tail(), (x,), strict=True)
    assert "ferattn" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), Tail()(x))


# What a training step costs beside its walks over the maps


@pytest.mark.parametrize(("kind", "share"), [("se", 0.3), ("eca", 0.3), ("cbam", 0.5)])
@pytest.mark.parametrize("last", [True, False])
def test_small_tensors_stay_small(kind: str, share: float, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is written beside maps and bits and read again, in shares of ResNet-50's first map in bfloat16.

    And all that is saved for the backward pass: x, its bits and small tensors.
    """
    from ferattn.kernels.passes import Options, Small
    from ferattn.kernels.triton import launch, launch_backward

    seen: dict[int, Tensor] = {}

    def record(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        seen.update({id(t): t for t in arguments if isinstance(t, Tensor)})

    monkeypatch.setattr(launch, "launch", record)
    with torch.device("meta"):
        memory_format = torch.channels_last if last else torch.contiguous_format
        x = torch.empty(128, 256, 56, 56, dtype=torch.bfloat16, memory_format=memory_format)
        gate = Case(kind, "train", Act(), (1, 256, 1, 1)).gate
        name, flag, weights = weights_of(gate)
        c, cbam = torch.empty(256), kind == "cbam"
        found = launch.statistics(x, c, c, c, None, 0.1, batch=True, peak=2 if cbam else 0)
        small = Small(c, c, found[0], found[1], found[2], found[3] if cbam else None, *weights)
        options = Options(name, flag, True, 1e-5, "relu", 1.0, "shared")
        left = launch.forward(x, x, small, options, save=True)
        launch_backward.backward(x, x, left.bits, left, found[4] if cbam else None, small, options)
    assert 16 * left.bits.nbytes == x.nbytes
    saved = x.nbytes + sum(t.nbytes for t in (*left[1:], *found))
    assert 1 + 1 / 16 < saved / x.nbytes <= (1.1 if cbam else 1.07)
    extra = sum(t.nbytes for t in seen.values() if t.numel() < x.numel() and t is not left.bits)
    assert 0 < 2 * extra / x.nbytes <= share


# Which way


def _arguments(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, None, ECAGate]:
    return torch.ones(2, 6, 4, 4, device=device, dtype=dtype), None, ECAGate(torch.ones(1, 1, 3), None, 6)


def test_a_path_that_cannot_run_says_why() -> None:
    x, shortcut, gate = _arguments()
    assert str(explain(x, shortcut, gate)) == "plain: the map is on the cpu"
    with pytest.raises(InvalidOption, match=r"path 'triton' cannot run here: the map is on the cpu. Options: auto"):
        fused_tail(x, shortcut, gate, path="triton")
    with use("triton"), pytest.raises(InvalidOption, match="the map is on the cpu"):
        explain(x, shortcut, gate)
    with use("triton"), use("plain"):
        assert str(explain(x, shortcut, gate)) == "plain: asked for"
    with use("triton"), use("auto"):
        assert explain(x, shortcut, gate).path == "plain"
    with use("triton"):
        torch.testing.assert_close(fused_tail(x, shortcut, gate, path="plain"), plain_tail(x, shortcut, gate))


def test_explaining_refuses_what_computing_refuses() -> None:
    x, shortcut, gate = _arguments()
    with pytest.raises(UnknownChoice, match="did you mean 'relu'"):
        explain(x, shortcut, gate, act=Act("rleu"))
    with pytest.raises(InvalidOption, match="needs running_mean"):
        explain(x, shortcut, gate, Norm(None, None, None, None, training=False))


def test_an_unknown_path_is_named() -> None:
    with pytest.raises(UnknownChoice, match="did you mean 'triton'"):
        fused_tail(*_arguments(), path="tritn")
    with pytest.raises(UnknownChoice, match="did you mean 'plain'"), use("plane"):
        pass


def test_a_compiled_tail_follows_what_is_forced() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(fused_tail, fullgraph=True, backend="eager")
    x, shortcut, gate = _arguments()
    expected = plain_tail(x, shortcut, gate)
    torch.testing.assert_close(compiled(x, shortcut, gate), expected)
    with use("triton"), pytest.raises(Exception, match="the map is on the cpu"):
        compiled(x, shortcut, gate)
    torch.testing.assert_close(compiled(x, shortcut, gate), expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, gate: (x.double(), gate), "the map is float64"),
        (lambda x, gate: (x[:0], gate), "the map is empty"),
        (lambda x, gate: (x[:1, :, :1, :1].expand(1, 6, 4096, 4096), gate), "a map has more than"),
        (lambda x, gate: (x[:1, :, :1, :1].expand(128, 6, 2900, 2900), gate), "the maps have 2**30 places"),
        (lambda x, gate: (x, gate._replace(weight=torch.ones(1, 1, 33))), "a filter of 33"),
        (lambda x, gate: (x, gate._replace(weight=torch.ones(1, 1, 4))), "a filter of 4"),
        (lambda x, gate: (x, gate._replace(weight=gate.weight.double())), "a weight is float64"),
        (lambda x, gate: (x, gate._replace(weight=gate.weight.to("meta"))), "a tensor is on meta, the map on cpu"),
    ],
)
def test_what_the_kernels_do_not_take_is_named(
    change: Callable[..., Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_machine", lambda *_: None)
    x, _, gate = _arguments()
    assert explain(x, None, gate).path == "triton"
    x, gate = change(x, gate)
    assert str(explain(x, None, gate)).startswith(f"plain: {reason}")


def test_an_old_gpu_takes_the_plain_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0) if index == 1 else (7, 5))
    assert dispatch._machine("cuda", 0, True) == "the GPU is older than compute capability 8.0"
    assert dispatch._machine("cuda", 1, True) is None
    assert "not timed on a GPU yet" in str(dispatch._machine("cuda", 1, False))


def test_the_kernels_are_imported_on_first_use() -> None:
    script = "import sys, ferattn.kernels; print('ferattn.kernels.triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
