"""The runner: rows, ratios, resuming, and memory that runs out."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

from ferattn.bench import Case, Group, Request, new_record, run, schema
from ferattn.bench.record import environment
from ferattn.measure import Candidate

QUICK = Request(batch=2, warmup=1, repeats=3, min_sample_ms=0.0)


class Silent:
    def __init__(self) -> None:
        self.groups: list[str] = []
        self.seen: list[Mapping[str, Any]] = []

    def group(self, group: Group) -> None:
        self.groups.append(group.key)

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.seen.extend(rows)


def facts(**more: Any) -> dict[str, Any]:
    return {
        "library": "ferattn", "attention": None, "img_size": 4, "batch": 2, "step": "inference", "mode": "eager",
        "memory_format": "contiguous", "dtype": "float32", "parameters": 6, **more,
    }  # fmt: skip


def fits() -> Candidate:
    return Candidate(nn.Linear(2, 2), (2, 2))


class Huge(nn.Module):
    """Asks for more memory than any machine has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 60, dtype=torch.uint8)


def does_not_fit() -> Candidate:
    return Candidate(Huge(), (2, 2))


def record_of(groups: list[Group]) -> dict[str, Any]:
    record = new_record("models", QUICK, torch.device("cpu"), "ferattn bench")
    run(groups, QUICK, record, lambda record: None, Silent())
    return record


def group(key: str, **cases: Any) -> Group:
    return Group(key, tuple(Case(name, facts, build) for name, build in cases.items()))


def test_a_row_per_case_with_the_first_as_yardstick() -> None:
    record = record_of([group("g", plain=fits, other=fits)])
    jsonschema.validate(record, schema())
    assert [(row["name"], row["yardstick"], row["status"]) for row in record["rows"]] == [
        ("plain", "plain", "ok"),
        ("other", "plain", "ok"),
    ]
    assert record["rows"][0]["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert record["rows"][1]["repeats"] == 3


@pytest.mark.parametrize("where", [0, 1, 2])
def test_out_of_memory_is_a_row_and_the_others_are_measured(where: int) -> None:
    builds = [fits, fits, fits]
    builds[where] = does_not_fit
    record = record_of([group("g", a=builds[0], b=builds[1], c=builds[2]), group("h", a=fits)])
    jsonschema.validate(record, schema())
    statuses = [row["status"] for row in record["rows"]]
    assert statuses == ["out_of_memory" if n == where else "ok" for n in range(3)] + ["ok"]
    assert all((row["ratio"] is None) == (where == 0) for row in record["rows"][:3] if row["status"] == "ok")
    assert "median_ms" not in record["rows"][where]


def test_what_does_not_compile_is_a_row_and_the_others_are_measured() -> None:
    def does_not_compile() -> Candidate:
        class Printing(nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                print(x.sum())  # breaks the graph
                return super().forward(x)

        return Candidate(Printing(2, 2), (2, 2), mode="compiled")

    record = record_of([group("g", a=fits, b=does_not_compile)])
    jsonschema.validate(record, schema())
    assert [row["status"] for row in record["rows"]] == ["ok", "not_compiled"]
    assert "median_ms" not in record["rows"][1]
    assert record["rows"][1]["reason"].startswith('mode="compiled" failed')


@pytest.mark.parametrize("newer", [True, False])
def test_tf32_is_recorded_in_either_of_torchs_ways(newer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    if newer:
        monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    assert set(environment(torch.device("cpu"))["tf32"]) == {"matmul", "convolution"}
    assert not any(isinstance(value, str) for value in environment(torch.device("cpu"))["tf32"].values())


def test_other_errors_are_not_swallowed() -> None:
    def broken() -> Candidate:
        return Candidate(nn.Linear(2, 2), (2, 3))

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        record_of([group("g", a=broken)])


def test_an_interrupted_run_goes_on_where_it_stopped() -> None:
    saved: list[dict[str, Any]] = []

    def interrupt() -> Candidate:
        raise KeyboardInterrupt

    record = new_record("models", QUICK, torch.device("cpu"), "ferattn bench")
    with pytest.raises(KeyboardInterrupt):
        run(
            [group("one", a=fits), group("two", a=interrupt)],
            QUICK,
            record,
            lambda record: saved.append(copy.deepcopy(dict(record))),
            Silent(),
        )
    assert [row["group"] for row in saved[-1]["rows"]] == ["one"]
    again, watcher = json.loads(json.dumps(saved[-1])), Silent()
    run([group("one", a=interrupt), group("two", a=fits)], QUICK, again, lambda record: None, watcher)
    assert watcher.groups == ["two"]
    assert [row["group"] for row in watcher.seen] == [row["group"] for row in again["rows"]] == ["one", "two"]
    assert again["rows"][0] == saved[-1]["rows"][0]


def test_bandwidth_is_the_floor_over_the_time() -> None:
    record = new_record("blocks", QUICK, torch.device("cpu"), "ferattn bench blocks")
    record["copy_bytes_per_s"] = 1e9
    case = Case("a", lambda: facts(channels=1, height=1, map_bytes=100, floor_bytes=300), fits)
    run([Group("g", (case,))], QUICK, record, lambda record: None, Silent())
    row = record["rows"][0]
    assert row["achieved_bytes_per_s"] == pytest.approx(300 / (row["median_ms"] / 1e3))
    assert row["share_of_copy"] == pytest.approx(row["achieved_bytes_per_s"] / 1e9)
    jsonschema.validate(record, schema())
