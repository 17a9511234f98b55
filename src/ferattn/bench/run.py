"""Runs the groups of a suite and writes down one row per case; what does not fit or compile is a row, too."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from ferattn.bench.plan import Case, Group, Request
from ferattn.errors import NotCompiled
from ferattn.measure import Candidate, Comparison, time_together

__all__ = ["Watcher", "run"]


class Failure(NamedTuple):
    """Why there are no timings: a row's status, and what was said."""

    status: str
    reason: str = ""


class Watcher(Protocol):
    """Is told what happens."""

    def group(self, group: Group) -> None:
        """A group's turn has come."""

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A group is done, now or in an earlier run."""


def run(
    groups: Iterable[Group],
    request: Request,
    record: dict[str, Any],
    save: Callable[[Mapping[str, Any]], None],
    watcher: Watcher,
) -> None:
    """Measure the groups that are not in the record yet, and save the record after each.

    Args:
        groups: What to measure.
        request: How to measure.
        record: The record to add rows to; its rows are taken as done.
        save: Keeps the record; called after every group.
        watcher: Is told what happens.
    """
    done: dict[str, list[Mapping[str, Any]]] = {}
    for row in record["rows"]:
        done.setdefault(row["group"], []).append(row)
    for group in groups:
        if group.key not in done:
            watcher.group(group)
            done[group.key] = _measure(group, request, record["copy_bytes_per_s"])
            record["rows"].extend(done[group.key])
            save(record)
        watcher.rows(done[group.key])


def _measure(group: Group, request: Request, copy_bytes_per_s: float | None) -> list[Mapping[str, Any]]:
    yardstick = group.cases[0]
    facts = {case.name: dict(case.facts()) for case in group.cases}
    together = _together(group.cases, request)
    rows: list[Mapping[str, Any]] = []
    for case in group.cases:
        comparison = together
        if isinstance(comparison, Failure) and case is not yardstick:
            comparison = _together((yardstick, case), request)
        if isinstance(comparison, Failure):
            comparison = _together((case,), request)
        rows.append(_row(group.key, case.name, yardstick.name, facts[case.name], comparison, copy_bytes_per_s))
    return rows


def _together(cases: Sequence[Case], request: Request) -> Comparison | Failure:
    """The timings of these cases side by side, or why there are none: memory, or the compiler."""
    comparison: Comparison | Failure = Failure("out_of_memory")
    try:
        candidates: dict[str, Candidate] = {case.name: case.build() for case in cases}
        comparison = time_together(
            candidates,
            warmup=request.warmup,
            repeats=request.repeats,
            min_sample_ms=request.min_sample_ms,
            budget_s=request.budget_s,
        )
    except NotCompiled as error:
        if not _is_out_of_memory(error):
            comparison = Failure("not_compiled", str(error))
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
    # Outside the handler, or the traceback would keep what did not fit.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return comparison


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "out of memory" in text or "can't allocate memory" in text or "alloc_failed" in text
    )


def _row(
    group: str,
    name: str,
    yardstick: str,
    facts: Mapping[str, Any],
    comparison: Comparison | Failure,
    copy_bytes_per_s: float | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"group": group, "name": name, "yardstick": yardstick, **facts}
    if isinstance(comparison, Failure):
        return row | {"status": comparison.status} | ({"reason": comparison.reason} if comparison.reason else {})
    timing = comparison.timings[name]
    row |= {
        "status": "ok",
        "warmup": timing.warmup,
        "repeats": timing.repeats,
        "calls_per_sample": timing.calls_per_sample,
        "median_ms": timing.median_ms,
        "low_ms": timing.low_ms,
        "high_ms": timing.high_ms,
        "images_per_s": timing.images_per_s,
        "peak_bytes": timing.peak_bytes,
        "ratio": None,
    }
    if yardstick in comparison.timings:
        ratio = comparison.ratio(name, yardstick)
        row["ratio"] = {"median": ratio.median, "low": ratio.low, "high": ratio.high}
    if "floor_bytes" in row:
        achieved = row["floor_bytes"] / (timing.median_ms / 1e3)
        row["achieved_bytes_per_s"] = achieved
        row["share_of_copy"] = achieved / copy_bytes_per_s if copy_bytes_per_s else None
    return row
