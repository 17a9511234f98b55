"""CSV files with one image a row, its pixels written as numbers with spaces between them, as FER2013's."""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ferattn.data.problems import Problems
from ferattn.errors import InvalidInput, UnknownChoice, choose

__all__ = ["PixelTable", "parse_pixels", "read_pixel_csv"]

CHUNK_ROWS = 512


class PixelTable(NamedTuple):
    """The usable rows of a file: names, pixels (n, side, side), labels (-1: none), splits."""

    ids: list[str]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    parts: list[str]


class _Row(NamedTuple):
    number: int
    pixels: str
    label: int
    part: str


def read_pixel_csv(
    stream: IO[bytes],
    name: str,
    problems: Problems,
    *,
    side: int,
    classes: int,
    usages: Mapping[str, str],
    part: str | None = None,
) -> PixelTable:
    """Read the columns ``emotion``, ``pixels`` and ``Usage``, in any order; spaces around names are ignored.

    Args:
        stream: The file.
        name: Its name, for messages; row 1 is the first after the column names.
        problems: Where bad rows are reported.
        side: Height and width of the images.
        classes: Number of classes; labels run from 0 to one less.
        usages: Lower-case value of the usage column -> name of the split.
        part: The split of all rows, for a file without a usage column. A file may lack the emotion column
            too.

    Raises:
        InvalidInput: If a column is missing or the file is damaged; also for a bad row, where ``problems``
            are raised.
    """
    ids: list[str] = []
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    parts: list[str] = []
    chunk: list[_Row] = []

    def flush() -> None:
        rows, pixels = _parse_chunk(chunk, name, problems, side)
        images.append(pixels)
        ids.extend(f"{name}:{row.number}" for row in rows)
        labels.extend(row.label for row in rows)
        parts.extend(row.part for row in rows)
        chunk.clear()

    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="") as text:
        reader = csv.reader(text)
        try:
            columns = _columns(next(reader, []), name, part)
            for row in _rows(reader, columns, name, problems, classes, usages, part):
                chunk.append(row)
                if len(chunk) == CHUNK_ROWS:
                    flush()
            flush()
        except (csv.Error, zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise InvalidInput(f"{name}: damaged near line {reader.line_num} ({error}).") from error
    return PixelTable(ids, np.concatenate(images), np.array(labels, dtype=np.int64), parts)


def _columns(header: list[str], name: str, part: str | None) -> dict[str, int]:
    columns = {column.strip().lower(): position for position, column in enumerate(header)}
    needed = ["pixels"] if part is not None else ["emotion", "pixels", "usage"]
    for column in needed:
        if column not in columns:
            shown = ", ".join(repr(text[:40]) for text in header[:8]) or "none"
            raise InvalidInput(f"{name}: no column {column!r}; needed: {', '.join(needed)}; found: {shown}.")
    return columns


def _rows(
    reader: Iterator[list[str]],
    columns: Mapping[str, int],
    name: str,
    problems: Problems,
    classes: int,
    usages: Mapping[str, str],
    part: str | None,
) -> Iterator[_Row]:
    numbers = {str(label): label for label in range(classes)}
    for number, fields in enumerate(reader, start=1):
        if not fields:
            continue
        if len(fields) <= max(columns.values()):
            problems.add(
                f"{name} row {number}", f"{len(fields)} columns where {max(columns.values()) + 1} are needed."
            )
            continue
        label = -1
        if "emotion" in columns:
            word = fields[columns["emotion"]].strip()
            if word not in numbers:
                problems.add(
                    f"{name} row {number}", f"emotion {word[:40]!r} is not a number from 0 to {classes - 1}."
                )
                continue
            label = numbers[word]
        row_part = part
        if "usage" in columns:
            usage = fields[columns["usage"]].strip()
            try:
                row_part = choose(usages, usage.lower(), "usage")
            except UnknownChoice as error:
                problems.add(f"{name} row {number}", str(error))
                continue
        yield _Row(number, fields[columns["pixels"]].strip(), label, row_part or "")


def _parse_chunk(chunk: list[_Row], name: str, problems: Problems, side: int) -> tuple[list[_Row], NDArray[np.uint8]]:
    """All rows at once where every one is good; one by one where some are not, to name them."""
    count = side * side
    if all(row.pixels.count(" ") == count - 1 for row in chunk):
        pixels = parse_pixels(" ".join(row.pixels for row in chunk)) if chunk else np.zeros(0, np.uint8)
        if pixels is not None and len(pixels) == count * len(chunk):
            return list(chunk), pixels.reshape(-1, side, side)
    rows: list[_Row] = []
    good: list[NDArray[np.uint8]] = []
    for row in chunk:
        values = parse_pixels(" ".join(row.pixels.split()))
        if values is None:
            problems.add(f"{name} row {row.number}", "pixels are not all whole numbers from 0 to 255.")
        elif len(values) != count:
            problems.add(
                f"{name} row {row.number}",
                f"{len(values)} pixels where {count} ({side} x {side}) are needed.",
            )
        else:
            rows.append(row)
            good.append(values)
    stacked = np.stack(good) if good else np.zeros((0, count), np.uint8)
    return rows, stacked.reshape(-1, side, side)


def parse_pixels(text: str) -> NDArray[np.uint8] | None:
    """Whole numbers from 0 to 255 with one space between them, or None if the text is anything else.

    Works on all characters at once, which is several times faster than ``int`` on each number.

    >>> parse_pixels("0 17 255")
    array([  0,  17, 255], dtype=uint8)
    >>> parse_pixels("0 256") is None, parse_pixels("1  2") is None, parse_pixels("") is None
    (True, True, True)
    """
    if not text or not text.isascii():
        return None
    codes = np.frombuffer(f"{text} ".encode("ascii"), dtype=np.uint8)
    ends = np.flatnonzero(codes == 32)
    digits = codes - np.uint8(48)  # wraps around: everything that is no digit becomes larger than 9
    lengths = np.diff(ends, prepend=-1) - 1
    if lengths.min() < 1 or lengths.max() > 3 or int((digits > 9).sum()) != len(ends):
        return None
    values = digits[ends - 1].astype(np.int16)
    # Indices below 0 wrap around to other numbers; they belong to shorter numbers and are masked.
    values += np.where(lengths > 1, digits[ends - 2], 0).astype(np.int16) * 10
    values += np.where(lengths > 2, digits[ends - 3], 0).astype(np.int16) * 100
    return values.astype(np.uint8) if values.max() <= 255 else None
