"""What a benchmark is made of: a request, and groups of cases that are timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ferattn.errors import InvalidOption
from ferattn.measure import Candidate

__all__ = ["DTYPES", "Case", "Group", "Request"]

DTYPES: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of dtypes, and what to autocast to."""


@dataclass(frozen=True)
class Request:
    """What to measure and how; None leaves the choice to the suite.

    Attributes:
        names: Models or blocks; none for the suite's own list.
        device: "auto", "cpu", "cuda", ...
        batch: Images per call.
        img_sizes: Heights (and widths) of the images in pixels.
        in_chans: Channels of the images.
        dtype: A name from ``DTYPES``; other than float32, the forward pass runs under autocast.
        compiled: Under ``torch.compile`` or not; None in a suite that does both.
        channels_last: In channels_last memory format or not; None in a suite that does both.
        training: With a backward pass or not; None in a suite that does both.
        against: What else to time in the same groups.
        quick: Only a sample of what the suite has, where the suite knows a smaller one.
        warmup: Calls before the first sample.
        repeats: Samples.
        min_sample_ms: Shortest sample.
        budget_s: Seconds of sampling per group.
    """

    names: tuple[str, ...] = ()
    device: str = "auto"
    batch: int | None = None
    img_sizes: tuple[int, ...] | None = None
    in_chans: int = 1
    dtype: str = "float32"
    compiled: bool | None = None
    channels_last: bool | None = None
    training: bool | None = None
    against: tuple[str, ...] = ()
    quick: bool = False
    warmup: int = 3
    repeats: int = 20
    min_sample_ms: float = 20.0
    budget_s: float | None = 20.0

    def __post_init__(self) -> None:
        for what, number in (
            ("--batch", self.batch),
            ("--in-chans", self.in_chans),
            ("--warmup", self.warmup),
            ("--repeats", self.repeats),
            *(("--img-size", size) for size in self.img_sizes or ()),
        ):
            if number is not None and number < 1:
                raise InvalidOption(f"{what} must be 1 or more, got {number}")
        if self.budget_s is not None and not self.budget_s > 0:
            raise InvalidOption(f"--budget must be above 0 seconds, got {self.budget_s}")


@dataclass(frozen=True)
class Case:
    """One row to come.

    Attributes:
        name: Unique within its group.
        facts: Columns known without a clock, such as the parameters; computed when the group's turn comes.
        build: Makes what is to be timed.
    """

    name: str
    facts: Callable[[], Mapping[str, Any]]
    build: Callable[[], Candidate]


@dataclass(frozen=True)
class Group:
    """Cases that take turns under one clock; the first is the yardstick of the ratios.

    Attributes:
        key: Unique within its suite; a group that is in the record already is not measured again.
        cases: The rows to come.
    """

    key: str
    cases: tuple[Case, ...]
