import csv
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferattn.errors import InvalidOption
from ferattn.faces.journal import LOCK, REPORT, SETTINGS, Journal, Row, claim
from ferattn.files import alone

ROWS = [
    Row('b, "quoted"\nname.png', "b.png", "kept", stamp="2-2"),
    Row("a.png", reason="no face", stamp="1-1"),
]


def test_the_report_is_sorted_csv(tmp_path):
    journal = Journal(tmp_path)
    journal.start()
    for row in ROWS:
        journal.add(row)
    report = journal.finish()
    with report.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == [ROWS[1].source, ROWS[0].source]
    assert rows[0]["reason"] == "no face"
    assert os.listdir(tmp_path) == [REPORT]
    assert Journal(tmp_path).rows == {row.source: row for row in ROWS}


@settings(deadline=None)
@given(lost=st.integers(0, 60))
def test_a_torn_journal_loses_whole_lines_and_nothing_else(lost, tmp_path_factory):
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder)
    journal.start()
    rows = [Row(f"{i}.png", f"{i}.png", "kept", stamp=f"12345-{i}{i}{i}") for i in range(4)]
    for row in rows:
        journal.add(row)
    journal.close()
    partial = folder / "crop_report.partial.csv"
    content = partial.read_bytes()
    partial.write_bytes(content[: len(content) - lost])
    found = Journal(folder)
    assert list(found.rows.values()) == rows[: len(found.rows)]
    assert len(found.rows) >= 4 - 1 - lost // 20
    found.start()
    found.add(Row("new.png"))
    found.close()
    assert list(Journal(folder).rows.values()) == [*found.rows.values()]


def test_names_that_are_no_utf8_survive(tmp_path):
    journal = Journal(tmp_path)
    journal.start()
    journal.add(Row("caf\udce9.png", stamp="1"))
    journal.finish()
    assert list(Journal(tmp_path).rows) == ["caf\udce9.png"]


def test_adding_before_starting_is_a_mistake(tmp_path):
    with pytest.raises(RuntimeError, match="not started"):
        Journal(tmp_path).add(Row("a"))


def test_a_folder_is_claimed_once(tmp_path):
    out = tmp_path / "a/out"
    claim(out, {"size": 80})
    left = out / ".x.part"
    left.write_bytes(b"of a killed run")
    claim(out, {"size": 80})
    assert left.exists()  # perhaps of a run that goes on
    with alone(out, LOCK), pytest.raises(InvalidOption, match="another process is writing"), alone(out, LOCK):
        pass
    assert not left.exists()
    assert sorted(os.listdir(out)) == [SETTINGS]
    with alone(out, LOCK):  # free again
        claim(out, {"size": 80})
    with pytest.raises(InvalidOption, match="size: 80, now 64"):
        claim(out, {"size": 64})
    (out / SETTINGS).write_text("{")
    with pytest.raises(InvalidOption, match="damaged"):
        claim(out, {"size": 80})


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InvalidOption, match="no crop run made"):
        claim(tmp_path, {})
    with pytest.raises(InvalidOption, match="is a file"):
        claim(tmp_path / "mine.txt", {})
    with pytest.raises(InvalidOption, match="cannot write to the output"):
        claim(tmp_path / "mine.txt/below", {})
    assert os.listdir(tmp_path) == ["mine.txt"]
