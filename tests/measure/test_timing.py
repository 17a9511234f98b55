"""The clock: what it waits for, whose turn it is, what it leaves alone, and every option's effect."""

from __future__ import annotations

import sys
from time import sleep

import pytest
import torch
from torch import nn

from ferattn.errors import FerattnError, InvalidOption, UnknownChoice
from ferattn.measure import Candidate, copy_bandwidth, resolve_device, time, time_together

QUICK = {"warmup": 1, "repeats": 3, "min_sample_ms": 0.0}


class Spy(nn.Module):
    """Writes down how it was called; the list is shared by copies."""

    def __init__(self, seen: list[dict[str, object]]) -> None:
        super().__init__()
        self.seen = seen
        self.conv = nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def __deepcopy__(self, memo: dict[int, object]) -> Spy:
        copy = Spy(self.seen)
        copy.load_state_dict(self.state_dict())
        return copy

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        self.seen.append(
            {
                "dtype": y.dtype,
                "input channels_last": x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous(),
                "weight channels_last": not self.conv.weight.is_contiguous() or self.conv.weight.stride(1) == 1,
                "grad": torch.is_grad_enabled(),
                "training": self.training,
                "input grad": x.requires_grad,
            }
        )
        return y


def seen_with(**options: object) -> dict[str, object]:
    seen: list[dict[str, object]] = []
    time(Spy(seen), (2, 2, 4, 4), **QUICK, **options)
    return seen[-1]


def test_the_clock_measures_time() -> None:
    timing = time(lambda x: sleep(0.02), (4, 1), **QUICK)
    assert 20 <= timing.median_ms < 40
    assert timing.low_ms <= timing.median_ms <= timing.high_ms
    assert timing.batch == 4
    assert timing.images_per_s == pytest.approx(4 / timing.median_ms * 1e3)


def test_ratios_are_paired_and_per_image() -> None:
    slow = Candidate(lambda x: sleep(0.02), (2, 1))
    fast = Candidate(lambda x: sleep(0.01), (2, 1))
    double_batch = Candidate(lambda x: sleep(0.02), (4, 1))
    comparison = time_together({"slow": slow, "fast": fast, "double": double_batch}, **QUICK)
    assert 1.5 < comparison.ratio("fast", "slow").median < 2.5
    assert 1.5 < comparison.ratio("double", "slow").median < 2.5
    assert comparison.ratio("slow", "slow").median == 1
    ratio = comparison.ratio("slow", "fast")
    assert ratio.low <= ratio.median <= ratio.high < 1
    with pytest.raises(UnknownChoice, match="did you mean 'slow'"):
        comparison.ratio("slwo", "fast")


def test_candidates_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    candidates = {name: Candidate(lambda x, name=name: calls.append(name), (1, 1)) for name in "abc"}
    time_together(candidates, warmup=1, repeats=4, min_sample_ms=0)
    assert "".join(calls[-12:]) == "abccbaabccba"


def test_warmup_repeats_and_sample_length_are_what_was_asked() -> None:
    calls: list[int] = []

    def run(x: torch.Tensor) -> None:
        calls.append(1)
        sleep(0.002)

    timing = time(run, (1, 1), warmup=4, repeats=5, min_sample_ms=0)
    assert (timing.warmup, timing.repeats, timing.calls_per_sample) == (4, 5, 1)
    assert len(calls) == 4 + 1 + 1 + 5  # one to find the length of a sample, one for the peak of memory
    longer = time(run, (1, 1), warmup=1, repeats=3, min_sample_ms=20)
    assert 3 <= longer.calls_per_sample <= 10


def test_a_budget_ends_the_rounds_but_not_before_three() -> None:
    assert time(lambda x: sleep(0.01), (1, 1), warmup=1, repeats=50, min_sample_ms=0, budget_s=0.1).repeats < 20
    assert time(lambda x: sleep(0.01), (1, 1), warmup=1, repeats=50, min_sample_ms=0, budget_s=0.001).repeats == 3


def test_a_step_sets_mode_and_gradients() -> None:
    inference, both, training = (seen_with(step=step) for step in ("inference", "forward_backward", "training"))
    assert (inference["grad"], inference["training"]) == (False, False)
    assert (both["grad"], both["training"], both["input grad"]) == (True, True, True)
    assert (training["grad"], training["training"], training["input grad"]) == (True, True, False)


def test_channels_last_and_autocast() -> None:
    assert not seen_with()["input channels_last"]
    there = seen_with(channels_last=True)
    assert there["input channels_last"]
    assert there["weight channels_last"]
    assert seen_with()["dtype"] == torch.float32
    assert seen_with(autocast=torch.bfloat16)["dtype"] == torch.bfloat16


def test_a_shape_becomes_what_the_model_takes() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        assert time(nn.Conv2d(1, 1, 1).to(dtype), (1, 1, 2, 2), **QUICK).median_ms > 0


def test_compiled_is_compiled_and_nothing_else() -> None:
    seen: list[bool] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            seen.append(True)
        return x + 1

    time(run, (2, 3), mode="compiled", **QUICK)
    assert not seen
    time(run, (2, 3), **QUICK)
    assert seen


def test_many_shapes_of_one_class_all_compile() -> None:
    # Dynamo would go back to eager after eight of them without a word.
    candidates = {
        str(n): Candidate(nn.Conv2d(n, n, 1), (1, n, 2, 2), mode="compiled", step="inference") for n in range(1, 11)
    }
    assert len(time_together(candidates, **QUICK).timings) == 10


def test_a_graph_break_is_an_error() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum().item() > 0 else x

    with pytest.raises(InvalidOption, match='mode="compiled" failed'):
        time(run, (2, 3), mode="compiled", **QUICK)


@pytest.mark.parametrize("step", ["inference", "forward_backward", "training"])
def test_the_module_is_left_as_it_was(step: str) -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).eval()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    time(module, (2, 2, 4, 4), step=step, channels_last=True, **QUICK)
    assert not module.training
    assert all(p.grad is None for p in module.parameters())
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
        assert tensor.is_contiguous()


def test_training_takes_a_real_step() -> None:
    # Momentum buffers are held between calls, so a training step holds three times the weights.
    module = nn.Linear(512, 512, bias=False)
    inference, training = (time(module, (1, 512), step=step, **QUICK) for step in ("inference", "training"))
    if inference.peak_bytes is not None and training.peak_bytes is not None:
        assert training.peak_bytes - inference.peak_bytes >= 1.9 * 4 * 512 * 512


def test_tensors_can_be_given() -> None:
    a, b = torch.ones(3, 2), torch.full((3, 2), 2.0)
    seen = []
    timing = time(lambda x, y: seen.append((x, y)), [a, b], **QUICK)
    assert timing.batch == 3
    torch.testing.assert_close(seen[-1][1], b)
    assert time(lambda x: x, a, **QUICK).batch == 3
    assert not a.requires_grad


def test_random_inputs_are_made_before_the_clock_starts() -> None:
    seen = []
    time(lambda x: seen.append(x), (2, 2), **QUICK)
    assert len({x.data_ptr() for x in seen}) == 1
    assert seen[0].std() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a high-water mark that can be reset")
def test_peak_memory_of_the_process() -> None:
    size = 48 << 20

    def run(x: torch.Tensor) -> None:
        torch.ones(size, dtype=torch.uint8)

    peak = time(run, (1, 1), **QUICK).peak_bytes
    assert peak is not None
    assert 0.95 * size < peak < 1.5 * size  # the kernel counts in batches of pages


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(InvalidOption, match=r"device 'cuda:99' is not on this machine; here: auto, cpu"):
        resolve_device("cuda:99")
    with pytest.raises(InvalidOption, match="'gpu' is none that torch knows"):
        resolve_device("gpu")
    with pytest.raises(InvalidOption, match="not on this machine"):
        time(nn.Linear(2, 2), (1, 2), device="cuda:99")


def test_copy_bandwidth() -> None:
    assert copy_bandwidth("cpu", size_bytes=1 << 24, repeats=3) > 1e8
    with pytest.raises(InvalidOption, match="size_bytes"):
        copy_bandwidth("cpu", size_bytes=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": "train"}, "did you mean 'training'"),
        ({"mode": "compile"}, "did you mean 'compiled'"),
        ({"warmup": 0}, "warmup must be 1 or more, got 0"),
        ({"repeats": 0}, "repeats must be 1 or more"),
        ({"min_sample_ms": -1.0}, "min_sample_ms must be 0 or more"),
        ({"budget_s": 0}, "budget_s must be above 0"),
    ],
)
def test_impossible_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(FerattnError, match=message):
        time(nn.Linear(2, 2), (1, 2), **options)


def test_impossible_candidates() -> None:
    with pytest.raises(InvalidOption, match="needs a module with trainable parameters"):
        time(lambda x: x, (1, 2), step="training")
    with pytest.raises(InvalidOption, match="output tensor that depends on"):
        time(lambda x: x.detach(), (1, 2), step="forward_backward")
    with pytest.raises(InvalidOption, match="give at least one"):
        time_together({})
    with pytest.raises(InvalidOption, match="inputs must be"):
        time(nn.Linear(2, 2), ())
    with pytest.raises(InvalidOption, match="batch axis"):
        time(lambda x: x, torch.tensor(1.0))
    with pytest.raises(InvalidOption, match="meta device"):
        time(nn.Linear(2, 2, device="meta"), (1, 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_cuda_graphs_need_cuda() -> None:
    with pytest.raises(InvalidOption, match="cuda_graph"):
        time(nn.Linear(2, 2), (1, 2), mode="cuda_graph")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("step", ["inference", "forward_backward", "training"])
def test_cuda_graph(step: str) -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    comparison = time_together(
        {
            mode: Candidate(module, (8, 4, 16, 16), step=step, mode=mode, device="cuda")
            for mode in ("eager", "cuda_graph")
        },
        **QUICK,
    )
    assert comparison.ratio("cuda_graph", "eager").median > 0
