"""The kernels on a CUDA device: the same laws as in the interpreter, and what only a GPU has."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from ferattn.kernels import Act, Norm, explain, fused_tail, plain_tail, use
from kernels import kernel_laws as laws
from kernels.interpreted import COUNTS
from kernels.test_tail import LAYOUTS, Case, _close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
]


@pytest.fixture(autouse=True)
def _exact() -> None:
    """PyTorch's own tail, which the kernels' errors are held against, in full float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize("drawn", list(laws.grid()), ids=laws.named)
def test_every_gradient(drawn: laws.Drawn) -> None:
    shape, kind, mode, layout, act, dtype = drawn
    torch.manual_seed(0)
    laws.compare(Case(kind, mode, Act(act, 0.7), shape), dtype, "cuda", layout)


@pytest.mark.parametrize("kind", ["se", "eca", "cbam", "cbam-unrefined"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_maps(kind: str, dtype: torch.dtype) -> None:
    """Sums in many parts, and more than one tile in every direction."""
    for shape, layout in itertools.product(((1, 64, 112, 112), (8, 320, 28, 28)), ("contiguous", "channels_last")):
        torch.manual_seed(1)
        laws.compare(Case(kind, "train", Act("relu"), shape), dtype, "cuda", layout)


@pytest.mark.parametrize("kind", ["cbam", "cbam-unrefined"])
@pytest.mark.parametrize("mode", laws.MODES)
def test_ties(kind: str, mode: str) -> None:
    laws.check_shared_ties(kind, mode, "cuda")
    if mode != "eval" and kind == "cbam":
        laws.check_first_ties(mode, "cuda")


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("mode", laws.MODES)
def test_nan_and_inf_come_out_where_pytorchs_do(kind: str, value: float, mode: str) -> None:
    laws.check_no_numbers(kind, mode, value, "cuda")


@pytest.mark.parametrize("kind", ["se", "cbam"])
@pytest.mark.parametrize("mode", laws.MODES)
def test_weights_may_be_strided(kind: str, mode: str) -> None:
    laws.check_strided_weights(kind, mode, "cuda")


def test_a_large_mean_is_not_cancelled_away() -> None:
    laws.check_large_mean("cuda")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bit_for_each_value_of_a_relu(layout: str) -> None:
    for kind, shape in (("se", (2, 5, 13, 17)), ("cbam", (3, 64, 28, 28)), ("eca", (2, 1023, 3, 2))):
        laws.check_bits(kind, shape, layout, "cuda")
    laws.check_threshold("cuda")
    laws.check_saved_layout(True, "cuda")
    laws.check_saved_layout(False, "cuda")
    laws.check_second_derivative("cuda")


@pytest.mark.parametrize("kind", COUNTS)
def test_launches_and_what_is_saved(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    laws.check_saved(kind, "relu", True, 1, "cuda")
    laws.check_saved(kind, "elu", True, 2, "cuda")
    laws.check_launches(kind, COUNTS[kind], "cuda", monkeypatch)


def test_the_kernels_run_where_they_are_asked_for() -> None:
    case = laws.small_case("cbam")
    x = case.maps[0].cuda().bfloat16().to(memory_format=torch.channels_last)
    gate = case.gate._replace(
        **{name: t.cuda().float() for name, t in case.gate._asdict().items() if isinstance(t, torch.Tensor)}
    )
    assert "not timed on a GPU yet" in str(explain(x, x, gate))
    with use("triton"):
        assert str(explain(x, x, gate)) == "triton: channels_last bfloat16 on cuda"


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
def test_a_cuda_graph_replays_the_tail(kind: str) -> None:
    torch.manual_seed(2)
    case = Case(kind, "eval", Act("relu"), (4, 64, 12, 12))
    x, shortcut = (case.maps[i].cuda().bfloat16() for i in (0, 2))
    gate = case.gate._replace(
        **{name: t.cuda().float() for name, t in case.gate._asdict().items() if isinstance(t, torch.Tensor)}
    )
    buffers = torch.zeros(64, device="cuda"), torch.ones(64, device="cuda")
    norm = Norm(case.weight.cuda().float(), case.bias.cuda().float(), *buffers, training=False)
    with torch.no_grad():
        expected = [fused_tail(m, shortcut, gate, norm, case.act, path="triton") for m in (x, x.flip(0))]
        graph, entry = torch.cuda.CUDAGraph(), x.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            fused_tail(entry, shortcut, gate, norm, case.act, path="triton")
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            out = fused_tail(entry, shortcut, gate, norm, case.act, path="triton")
        for m, wanted in zip((x, x.flip(0)), expected, strict=True):
            entry.copy_(m)
            graph.replay()
            assert torch.equal(out, wanted)


@pytest.mark.parametrize("kind", ["se", "eca", "cbam"])
def test_compiled_in_one_graph_for_training_and_inference(kind: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(3)
    compiled = torch.compile(functools.partial(fused_tail, path="triton"), fullgraph=True)
    for mode in ("train", "eval"):
        case = Case(kind, mode, Act("relu"), (4, 32, 8, 8))
        eager = case.run(laws.by_kernels, torch.float32, device="cuda")
        _close(case.run(compiled, torch.float32, device="cuda"), eager, 1e-4)
    with torch.no_grad():
        x = case.maps[0].float().cuda()
        gate = case.gate._replace(
            **{name: t.cuda().float() for name, t in case.gate._asdict().items() if isinstance(t, torch.Tensor)}
        )
        torch.testing.assert_close(compiled(x, x, gate), plain_tail(x, x, gate), rtol=1e-4, atol=1e-4)
