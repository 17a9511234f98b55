"""What a crop run did to each file, on disk at every moment, so that a run can be killed and taken up again.

While a run goes on, each finished file appends one line to ``crop_report.partial.csv``. At its end the sorted
whole becomes ``crop_report.csv``. ``crop_settings.json`` says with which settings the folder was made.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TextIO

from ferattn.errors import InvalidOption
from ferattn.files import write_atomically

__all__ = ["LOCK", "REPORT", "SETTINGS", "Journal", "Row", "claim"]

REPORT = "crop_report.csv"
SETTINGS = "crop_settings.json"
_PARTIAL = "crop_report.partial.csv"
LOCK = ".crop.lock"


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Args:
        source: Path of the picture within the input.
        output: Path of its crop within the output; empty if it was dropped.
        status: ``kept``, ``dropped``, or ``copied`` for a file with labels.
        reason: Why it was dropped, or ``whole picture`` where one was kept without a face.
        detail: More about the reason.
        faces: How many faces were found; empty if none was looked for.
        score: Confidence of the face that was cut out, where the detector gives one.
        x: Left edge of its box, pixels.
        y: Upper edge of its box, pixels.
        width: Width of its box, pixels.
        height: Height of its box, pixels.
        stamp: Size and time (or checksum) of the source file when it was read.
    """

    source: str
    output: str = ""
    status: str = "dropped"
    reason: str = ""
    detail: str = ""
    faces: str = ""
    score: str = ""
    x: str = ""
    y: str = ""
    width: str = ""
    height: str = ""
    stamp: str = ""


_COLUMNS = [field.name for field in fields(Row)]


class Journal:
    """The report of one output folder.

    Args:
        folder: The output folder, claimed before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, Row] = {}
        self._written: set[str] = set()
        for name in (REPORT, _PARTIAL):
            for row in _read_rows(folder / name):
                self.rows[row.source] = row
                self._written.add(row.output)
        self._file: TextIO | None = None

    def start(self) -> None:
        """Open the journal for appending, after writing what was known without a torn last line."""
        path = self.folder / _PARTIAL
        write_atomically(path, _table(self.rows.values()))
        self._file = path.open("a", encoding="utf-8", errors="surrogateescape", newline="")

    def add(self, row: Row) -> None:
        """Note that a file is done."""
        if self._file is None:
            raise RuntimeError("the journal was not started")
        self.rows[row.source] = row
        self._file.write(_line(astuple(row)))
        self._file.flush()

    def close(self) -> None:
        """Stop appending; what was noted stays for the next run."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self, sources: Collection[str] | None = None) -> Path:
        """Turn the journal into the report, sorted by source; crops that are no longer anybody's are deleted.

        Args:
            sources: The files of this run, or None for all: what is known of others is forgotten.

        Returns:
            The path of the report.
        """
        self.close()
        if sources is not None:
            self.rows = {source: row for source, row in self.rows.items() if source in sources}
        here = self.folder.resolve()
        for output in self._written - {row.output for row in self.rows.values()} - {""}:
            stale = (self.folder / output).resolve()
            if stale.is_relative_to(here) and stale.suffix == ".png":
                stale.unlink(missing_ok=True)
        report = self.folder / REPORT
        write_atomically(report, _table(sorted(self.rows.values(), key=lambda row: row.source)))
        (self.folder / _PARTIAL).unlink(missing_ok=True)
        return report


def claim(folder: Path, settings: Mapping[str, object]) -> None:
    """Make ``folder`` the output of a run with these settings, or find that it is already.

    Raises:
        InvalidOption: If the folder holds something else, or was made with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidOption(f"the output {str(folder)!r} is a file; give a folder")
    path = folder / SETTINGS
    wanted = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if path.is_file():
        try:
            present = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidOption(f"{str(path)!r} is damaged; give another output folder") from error
        if not isinstance(present, dict):
            raise InvalidOption(f"{str(path)!r} is damaged; give another output folder")
        different = sorted(key for key in {*settings, *present} if settings.get(key) != present.get(key))
        if different:
            changes = "; ".join(f"{key}: {present.get(key)!r}, now {settings.get(key)!r}" for key in different)
            raise InvalidOption(
                f"the output {str(folder)!r} was made with other settings ({changes}). "
                "Give another output folder, or the same settings to go on"
            )
        return
    if folder.exists() and any(entry.name != LOCK for entry in folder.iterdir()):
        raise InvalidOption(
            f"the output {str(folder)!r} holds files that no crop run made; give an empty or a new folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, wanted.encode())
    except OSError as error:
        raise InvalidOption(f"cannot write to the output {str(folder)!r}: {error.strerror}") from error


def _line(values: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


def _table(rows: Iterable[Row]) -> bytes:
    text = _line(_COLUMNS) + "".join(_line(astuple(row)) for row in rows)
    return text.encode("utf-8", errors="surrogateescape")


def _read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    records = list(csv.reader(io.StringIO(text, newline="")))
    if records and not text.endswith("\n"):
        records.pop()  # the run was killed in the middle of this line
    return [Row(*record) for record in records[1:] if len(record) == len(_COLUMNS)]
