"""The published tables close: every printed figure met or its oddity named, every difference explained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from ferattn.cli import app
from ferattn.published import Row, blocks, networks, printed_figures, published_tables
from ferattn.published.ledger import difference, ledger
from ferattn.published.report import as_json, as_markdown, as_text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "published.md"
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "published.json"
AUTHORS = json.loads((Path(__file__).parent / "authors_networks.json").read_text())


@pytest.fixture(scope="module")
def tables() -> dict[str, list[Row]]:
    return published_tables()


def test_31_of_32_rows_of_table_7_are_equal_and_the_odd_one_is_cut(tables: Mapping[str, Sequence[Row]]) -> None:
    rows = tables["table7"]
    assert len(rows) == 32
    odd = [row for row in rows if row.agreement != "equal"]
    assert [(row.backbone, row.attention, row.agreement) for row in odd] == [("resnetv2_50", "cbam", "cut")]
    assert odd[0].note == "26.0155 M was cut to 26.01, not rounded"


def test_reconstructed_is_the_authors_count(tables: Mapping[str, Sequence[Row]]) -> None:
    found = {
        f"{row.backbone}_{row.attention}" if row.attention else row.backbone: row.reconstructed
        for row in tables["table7"]
    }
    assert found == AUTHORS


def test_every_difference_adds_up(tables: Mapping[str, Sequence[Row]]) -> None:
    for rows in tables.values():
        for row in rows:
            assert row.ours + sum(row.difference.values()) == row.reconstructed, row
            assert "other" not in row.difference, row
            assert all(isinstance(value, int) and value for value in row.difference.values()), row


def test_every_row_that_is_not_equal_has_its_oddity_named(tables: Mapping[str, Sequence[Row]]) -> None:
    for rows in tables.values():
        for row in rows:
            assert row.agreement == "equal" or (row.note and "not explained" not in row.note), row
            assert row.note is None or "\n" not in row.note


def test_the_oddities_of_the_paper(tables: Mapping[str, Sequence[Row]]) -> None:
    notes = {(row.table, *row.option.values()): row.note or "" for row in tables["table3"] + tables["table5"]}
    assert "r = 4 of Table 2" in notes["table3", 1]
    assert "what k = 1 gives" in notes["table3", 3]
    assert "what k = 3 gives" in notes["table3", 5]
    assert "after each stage" in notes["table5", 1]
    assert not notes["table5", 2]
    assert "cannot be derived" in notes["table5", 3]
    vgg19 = next(row for row in tables["table7"] if row.backbone == "vgg19" and row.attention is None)
    assert "45.23 M" in (vgg19.note or "")
    assert vgg19.difference == {"missing convolution": -(512 * 512 * 9 + 512)}


def test_the_parts_are_the_closed_forms(tables: Mapping[str, Sequence[Row]]) -> None:
    row = next(row for row in tables["table7"] if (row.backbone, row.attention) == ("resnet50", "eca"))
    channels = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
    correct, published = {256: 5, 512: 5, 1024: 5, 2048: 7}, {256: 9, 512: 9, 1024: 11, 2048: 11}
    assert row.difference["form of ECA"] == sum(published[c] * c - correct[c] for c in channels)
    widths = [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
    assert row.difference["convolution biases"] == 64 + sum(6 * w for w in widths) + 256 + 512 + 1024 + 2048


@pytest.mark.parametrize(
    ("module", "rule", "value", "part"),
    [
        (networks, "HeightNorm", lambda height: blocks.HeightNorm(64), "normalisation parameters"),
        (networks, "BIASED", {"resnet": frozenset(), "resnetv2": frozenset()}, "convolution biases"),
        (blocks, "published_kernel_size", lambda channels: 3, "form of ECA"),
        (networks, "VGG19_PLAIN", (2, 2, 4, 4, 4), "missing convolution"),
    ],
)
def test_breaking_a_rule_breaks_the_table(
    monkeypatch: pytest.MonkeyPatch,
    tables: Mapping[str, Sequence[Row]],
    module: object,
    rule: str,
    value: object,
    part: str,
) -> None:
    monkeypatch.setattr(module, rule, value)
    broken = published_tables()["table7"]
    equal = [sum(row.agreement == "equal" for row in rows) for rows in (tables["table7"], broken)]
    assert equal[1] < equal[0]
    assert any(
        old.difference.get(part) != new.difference.get(part)
        for old, new in zip(tables["table7"], broken, strict=True)
    )
    assert all(row.ours + sum(row.difference.values()) == row.reconstructed for row in broken)


def test_changing_a_printed_number_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = printed_figures()
    figures["table7"] = [row | {"params_millions": row["params_millions"] + 0.05} for row in figures["table7"][:4]]
    monkeypatch.setattr("ferattn.published.tables.printed_figures", lambda: figures)
    assert {row.agreement for row in published_tables()["table7"]} == {"differs"}


def test_input_channels_are_a_part() -> None:
    one, three = (nn.Sequential(nn.Conv2d(c, 4, 3), nn.Conv2d(4, 4, 1)) for c in (1, 3))
    assert difference(ledger(one, ()), ledger(three, ()), None) == {"input channels": 2 * 4 * 9}
    assert difference(ledger(three, ()), ledger(one, ()), None) == {"input channels": -2 * 4 * 9}


def test_what_has_no_part_shows_up_as_other() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))

    assert difference(ledger(nn.Sequential(), ()), ledger(Scale(), ()), None) == {"other": 5}


def test_json_shape(tables: Mapping[str, Sequence[Row]]) -> None:
    data = json.loads(json.dumps(as_json(tables)))
    assert set(data) == {"table2", "table3", "table4", "table5", "table7"}
    first = data["table7"][0]
    assert {"backbone", "attention", "published_millions", "ours", "reconstructed", "difference"} <= set(first)
    assert first["attention"] is None
    assert [row["r"] for row in data["table2"]] == [4, 8, 16, 32]


def test_the_page_and_the_results_are_what_the_code_makes(tables: Mapping[str, Sequence[Row]]) -> None:
    assert PAGE.read_text(encoding="utf-8") == as_markdown(tables), "run: python benchmarks/published.py"
    assert json.loads(RESULTS.read_text(encoding="utf-8")) == as_json(tables)


def test_text_has_a_table_for_each_table(tables: Mapping[str, Sequence[Row]]) -> None:
    blocks = as_text(tables)
    assert [block.partition(":")[0] for block in blocks] == [f"Table {number}" for number in (2, 3, 4, 5, 7)]
    text = "\n".join(blocks)
    assert max(map(len, text.splitlines())) <= 80
    for rows in tables.values():
        for row in rows:
            assert f"{row.reconstructed:,}" in text
            assert all(f"{part} {number:+,}" in " ".join(text.split()) for part, number in row.difference.items())
            assert " ".join((row.note or "").split()) in " ".join(text.split())


def test_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["published", "--json", str(tmp_path / "tables.json")])
    assert result.exit_code == 0, result.output
    assert "31 of 32 rows are equal" in result.output
    assert len(json.loads((tmp_path / "tables.json").read_text())["table7"]) == 32
    assert [path.name for path in tmp_path.iterdir()] == ["tables.json"]


@pytest.mark.parametrize("path", ["nowhere/tables.json", "."])
def test_command_says_in_one_line_where_it_cannot_write(tmp_path: Path, path: str) -> None:
    result = CliRunner().invoke(app, ["published", "--json", str(tmp_path / path)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --json")
    assert result.stderr.count("\n") == 1
