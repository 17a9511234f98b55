"""How long a network takes: latency, throughput and peak memory, alone or side by side.

The clock is read after the device has finished, inputs are made before it starts, and everything is warmed up
(and compiled) first. Candidates that are compared take turns, round by round, so that a machine that slows
down slows all of them: ratios are taken within a round, and their median is reported.

>>> timing = time(torch.nn.Linear(8, 8), (4, 8), repeats=3, warmup=1, min_sample_ms=0.1)
>>> timing.repeats, timing.images_per_s > 0
(3, True)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from ferattn.errors import InvalidOption, choose
from ferattn.measure.memory import peak_extra_bytes
from ferattn.measure.running import Candidate, Running, compiling, prepare, resolve_device

__all__ = [
    "Candidate",
    "Comparison",
    "Ratio",
    "Timing",
    "copy_bandwidth",
    "resolve_device",
    "time",
    "time_together",
]


@dataclass(frozen=True)
class Timing:
    """How long one call takes.

    Attributes:
        batch: Images per call (the first axis of the first input).
        median_ms: Median over the samples.
        low_ms: Lower quartile.
        high_ms: Upper quartile.
        images_per_s: Throughput at the median.
        peak_bytes: Memory at the peak of one call: the candidate's own parameters, buffers, gradients,
            optimiser state and inputs, and all that the call needs beyond. The gradients that a step is fed and
            leaves on its inputs are made outside the clock and left out. None where nobody can tell: on platforms
            that keep no books, and for CUDA graphs.
        warmup: Calls before the first sample.
        calls_per_sample: Calls between two readings of the clock.
        samples_ms: Every sample, in order.
    """

    batch: int
    median_ms: float
    low_ms: float
    high_ms: float
    images_per_s: float
    peak_bytes: int | None
    warmup: int
    calls_per_sample: int
    samples_ms: tuple[float, ...]

    @property
    def repeats(self) -> int:
        """Number of samples."""
        return len(self.samples_ms)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the yardstick: median over the rounds, and its quartiles.

    Attributes:
        median: Of the rounds' ratios; 2 is twice as fast.
        low: Their first quartile.
        high: Their third quartile.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Timings of candidates that took turns; sample ``i`` of each belongs to round ``i``.

    Attributes:
        timings: By the candidate's name.
    """

    timings: Mapping[str, Timing]

    def ratio(self, name: str, yardstick: str) -> Ratio:
        """Speed of ``name`` over that of ``yardstick``, per image, paired within each round.

        Raises:
            UnknownChoice: If one of them was not timed.
        """
        one, other = (choose(self.timings, key, "candidate") for key in (name, yardstick))
        rounds = zip(one.samples_ms, other.samples_ms, strict=True)
        paired = [(theirs / other.batch) / (ours / one.batch) for ours, theirs in rounds]
        return Ratio(statistics.median(paired), *_quartiles(paired))


def time(
    run: Callable[..., Any],
    inputs: Sequence[int] | torch.Tensor | Sequence[torch.Tensor],
    *,
    step: str = "inference",
    mode: str = "eager",
    channels_last: bool = False,
    autocast: torch.dtype | None = None,
    device: str | torch.device | None = None,
    warmup: int = 5,
    repeats: int = 20,
    min_sample_ms: float = 20.0,
    budget_s: float | None = None,
) -> Timing:
    """Time one model or function.

    Args:
        run: A module or any function of tensors. A module is copied: the original stays as it is.
        inputs: The tensors to pass, or the shape of one random tensor, batch first.
        step: See ``Candidate``: "inference", "forward_backward" or "training".
        mode: See ``Candidate``: "eager", "compiled" or "cuda_graph".
        channels_last: Put the module and its four-dimensional inputs into channels_last memory format.
        autocast: Run under ``torch.autocast`` in this dtype.
        device: "auto", "cpu", "cuda", ...; by default where the module or the tensors are.
        warmup: Calls before the first sample, compilation included.
        repeats: Samples.
        min_sample_ms: A sample repeats the call until it lasts about this long.
        budget_s: Stop sampling after this many seconds, with three samples at the least.

    Raises:
        InvalidOption: If an option is impossible, or impossible on this machine.
    """
    candidate = Candidate(
        run, inputs, step=step, mode=mode, channels_last=channels_last, autocast=autocast, device=device
    )
    return time_together(
        {"": candidate}, warmup=warmup, repeats=repeats, min_sample_ms=min_sample_ms, budget_s=budget_s
    ).timings[""]


def time_together(
    candidates: Mapping[str, Candidate],
    *,
    warmup: int = 5,
    repeats: int = 20,
    min_sample_ms: float = 20.0,
    budget_s: float | None = None,
) -> Comparison:
    """Time several candidates side by side, in turns, so that their ratios hold on a noisy machine.

    Each round takes one sample of every candidate, in alternating order.

    Args:
        candidates: What to run, by name.
        warmup: Calls of each before the first sample.
        repeats: Rounds.
        min_sample_ms: A sample repeats the call until it lasts about this long.
        budget_s: Stop after this many seconds of rounds, with three rounds at the least.

    Raises:
        InvalidOption: If an option is impossible, or impossible on this machine.
    """
    _check_positive("warmup", warmup)
    _check_positive("repeats", repeats)
    if not candidates:
        raise InvalidOption("candidates is empty: give at least one")
    if not (math.isfinite(min_sample_ms) and min_sample_ms >= 0):
        raise InvalidOption(f"min_sample_ms must be 0 or more milliseconds, got {min_sample_ms!r}")
    if budget_s is not None and not budget_s > 0:
        raise InvalidOption(f"budget_s must be above 0 seconds, got {budget_s!r}")
    compiled = any(candidate.mode == "compiled" for candidate in candidates.values())
    with torch.inference_mode(False), compiling() if compiled else nullcontext():
        running = {name: prepare(candidate) for name, candidate in candidates.items()}
        peaks, calls = {}, {}
        for name, one in running.items():
            for _ in range(warmup):
                one.call()
            calls[name] = max(1, math.ceil(min_sample_ms / max(_sample_ms(one, 1), 1e-6)))
        for name, one in running.items():
            graph = candidates[name].mode == "cuda_graph"  # its memory was taken when it was recorded
            extra = None if graph else peak_extra_bytes(one.call, one.device)
            peaks[name] = None if extra is None else extra + one.held_bytes()
        samples = _rounds(running, calls, repeats, budget_s)
    timings = {}
    for name, one in running.items():
        median_ms = statistics.median(samples[name])
        low_ms, high_ms = _quartiles(samples[name])
        timings[name] = Timing(
            batch=one.batch,
            median_ms=median_ms,
            low_ms=low_ms,
            high_ms=high_ms,
            images_per_s=one.batch / median_ms * 1e3,
            peak_bytes=peaks[name],
            warmup=warmup,
            calls_per_sample=calls[name],
            samples_ms=tuple(samples[name]),
        )
    return Comparison(timings)


def copy_bandwidth(device: str | torch.device = "auto", *, size_bytes: int = 1 << 28, repeats: int = 10) -> float:
    """Bytes per second, read and written, of the best of several device-to-device copies.

    Args:
        device: Where to copy.
        size_bytes: Size of the tensor that is copied; well above every cache.
        repeats: Copies to take the best of.

    Raises:
        InvalidOption: If the device is not there, or a number is below 1.
    """
    _check_positive("size_bytes", size_bytes)
    _check_positive("repeats", repeats)
    where = resolve_device(device)
    source = torch.ones(size_bytes, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    one = Running(lambda: target.copy_(source), where, 1, (source, target), None)
    # A GPU copies in the time that it takes to launch and to wait: several at once.
    calls = 16 if where.type == "cuda" else 1
    _sample_ms(one, calls)
    best_ms = min(_sample_ms(one, calls) for _ in range(repeats))
    return 2 * size_bytes / best_ms * 1e3


def _rounds(
    running: Mapping[str, Running], calls: Mapping[str, int], repeats: int, budget_s: float | None
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in running}
    order = list(running)
    started = perf_counter()
    for done in range(repeats):
        if budget_s is not None and done >= 3 and perf_counter() - started > budget_s:
            break
        for name in order:
            samples[name].append(_sample_ms(running[name], calls[name]))
        order.reverse()  # whoever ran first runs last in the next round
    return samples


def _sample_ms(one: Running, calls: int) -> float:
    """Milliseconds per call over ``calls`` calls, the device idle before and after."""
    one.synchronize()
    started = perf_counter()
    for _ in range(calls):
        one.call()
    one.synchronize()
    return (perf_counter() - started) / calls * 1e3


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _check_positive(what: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise InvalidOption(f"{what} must be 1 or more, got {value!r}")
