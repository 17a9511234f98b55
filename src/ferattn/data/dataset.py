"""Labelled face images: read one by one from their files, or kept in memory as 8-bit pixels.

A dataset is a table (``Records``: one row per image) and a reader of pixels. Every item carries its position,
and ``ids`` turns the position into the name of the file or row, so predictions can be traced to their images.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ferattn.data.images import decode, reshape_image
from ferattn.data.labels import label_map
from ferattn.data.problems import Problems, Skipped
from ferattn.data.sources import Source
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice, choose

__all__ = [
    "ArrayReader",
    "Batch",
    "FaceDataset",
    "FileReader",
    "Item",
    "Reader",
    "Records",
    "digests",
    "part_table",
]

MERGED = ("public", "private", "merged")
"""FER2013's two test sets, and images of which it is not known to which of the two they belong."""


def digests(contents: Iterable[bytes]) -> NDArray[np.uint8]:
    """A 16-byte checksum of each. Shape: (n, 16)."""
    joined = b"".join(hashlib.blake2b(content, digest_size=16).digest() for content in contents)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 16)


class Item(NamedTuple):
    """One image, its class and its position in the dataset."""

    image: Tensor
    label: int
    position: int


class Batch(NamedTuple):
    """Images (b, c, h, w), classes (b,) and positions in the dataset (b,)."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class Reader(Protocol):
    """Where the pixels come from, by row number."""

    def load(self, row: int) -> bytes:
        """The stored form: what a checksum covers."""
        ...

    def decode(self, row: int, stored: bytes) -> NDArray[np.uint8]:
        """Pixels (h, w) or (h, w, 3) from the stored form."""
        ...


class FileReader:
    """Images in files."""

    def __init__(self, source: Source, names: Sequence[str]) -> None:
        self.source = source
        self.names = tuple(names)

    def load(self, row: int) -> bytes:
        """The file's bytes."""
        return self.source.read(self.names[row])

    def decode(self, row: int, stored: bytes) -> NDArray[np.uint8]:
        """The file's pixels."""
        return decode(stored, f"{self.source.root}: {self.names[row]}")


class ArrayReader:
    """Images that are in memory already, as (n, h, w) or (n, h, w, 3)."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def load(self, row: int) -> bytes:
        """The pixels' bytes."""
        content: bytes = self.pixels[row].tobytes()
        return content

    def decode(self, row: int, stored: bytes) -> NDArray[np.uint8]:
        """The pixels."""
        del stored  # the row has the pixels already
        image: NDArray[np.uint8] = self.pixels[row]
        return image


@dataclass(frozen=True, eq=False)
class Records:
    """What is known about each image, beside its pixels.

    Attributes:
        ids: A unique name for each image: its file within the dataset, or its row in a CSV file.
        labels: Positions in ``classes``; -1 for an image without a label.
        classes: Names of the classes.
        subjects: The person in each image, where the dataset says it.
        parts: The split to which the dataset's makers assigned each image, where they did.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    subjects: tuple[str, ...] | None = None
    parts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        for what, column in (("labels", self.labels), ("subjects", self.subjects), ("parts", self.parts)):
            if column is not None and len(column) != n:
                raise InvalidInput(f"{what} has {len(column)} entries for {n} images.")
        if len(set(self.ids)) != n:
            twice = Counter(self.ids).most_common(1)[0][0]
            raise InvalidInput(f"two images have the name {twice!r}.")
        if n and not -1 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise InvalidInput(
                f"labels run from {self.labels.min()} to {self.labels.max()} for {len(self.classes)} classes."
            )

    def take(self, rows: NDArray[np.int64]) -> Records:
        """The table with only these rows, in this order."""
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            labels=self.labels[rows],
            subjects=None if self.subjects is None else tuple(self.subjects[row] for row in rows),
            parts=None if self.parts is None else tuple(self.parts[row] for row in rows),
        )


def part_table(records: Records) -> dict[str, NDArray[np.int64]]:
    """The rows of each official split, and of ``"merged"`` where there are test images of FER2013."""
    if records.parts is None:
        return {}
    column = np.array(records.parts, dtype=str)
    table = {name: np.flatnonzero(column == name) for name in dict.fromkeys(records.parts)}
    if "merged" in table:  # test images of unknown origin: neither half would be complete
        table = {name: rows for name, rows in table.items() if name not in MERGED}
    merged = np.flatnonzero(np.isin(column, MERGED))
    if len(merged):
        table["merged"] = merged
    return table


class FaceDataset(Dataset[Item]):
    """Labelled images that are read when asked for.

    Args:
        name: What the dataset is called in reports.
        records: One row for each image.
        reader: Gives the pixels of a row.
        rows: The reader's row of each image; by default 0, 1, 2, ...
        problems: Policy for images that turn out unreadable when a cache is made, and what was skipped so
            far.
    """

    def __init__(
        self,
        name: str,
        records: Records,
        reader: Reader,
        rows: NDArray[np.int64] | None = None,
        problems: Problems | None = None,
    ) -> None:
        self.name = name
        self.records = records
        self._reader = reader
        self._rows = np.arange(len(records.ids)) if rows is None else rows
        self.problems = Problems("raise") if problems is None else problems

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} images, {len(self.classes)} classes)"

    def __len__(self) -> int:
        return len(self.records.ids)

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        return Item(self.read(index), int(self.records.labels[index]), index)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.records.classes

    @property
    def ids(self) -> tuple[str, ...]:
        """A unique name for each image."""
        return self.records.ids

    @property
    def labels(self) -> Tensor:
        """The class of each image. Shape: (n,)."""
        return torch.from_numpy(self.records.labels.copy())

    @property
    def subjects(self) -> tuple[str, ...] | None:
        """The person in each image, where known."""
        return self.records.subjects

    @property
    def parts(self) -> tuple[str, ...] | None:
        """The official split of each image, where there is one."""
        return self.records.parts

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files and rows that were left out, with the reason."""
        return tuple(self.problems.skipped)

    def counts(self) -> dict[str, int]:
        """Number of images of each class."""
        numbers = np.bincount(self.records.labels[self.records.labels >= 0], minlength=len(self.classes))
        return dict(zip(self.classes, numbers.tolist(), strict=True))

    def read(self, index: int) -> Tensor:
        """The 8-bit pixels of one image. Shape: (c, h, w), c = 1 for grey.

        Raises:
            InvalidInput: If the image cannot be read; names the file.
        """
        pixels, _ = self.read_stored(index)
        return torch.from_numpy(reshape_image(pixels, None, 1 if pixels.ndim == 2 else 3))

    def read_stored(self, index: int) -> tuple[NDArray[np.uint8], bytes]:
        """The pixels of one image, (h, w) or (h, w, 3), and the bytes they were read from."""
        row = int(self._rows[index])
        stored = self._reader.load(row)
        return self._reader.decode(row, stored), stored

    def digests(self) -> NDArray[np.uint8]:
        """A checksum of each image as it is stored. Shape: (n, 16)."""
        return digests(self._reader.load(int(row)) for row in self._rows)

    def checksum(self) -> str:
        """One checksum of the names, classes and stored content of all images, whatever their order."""
        content = self.digests()
        labels = self.records.labels
        total = hashlib.sha256()
        for row in sorted(range(len(self)), key=self.ids.__getitem__):
            label = self.classes[labels[row]] if labels[row] >= 0 else ""
            name = f"{self.ids[row]}\0{label}\0".encode(errors="surrogateescape")  # a file's name, in any encoding
            total.update(name + content[row].tobytes())
        return total.hexdigest()

    def subset(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> FaceDataset:
        """The images at these positions, in this order.

        Raises:
            InvalidOption: If a position lies outside the dataset.
        """
        rows = self._checked(indices)
        return self._select(rows, self.records.take(rows))

    def _select(self, rows: NDArray[np.int64], records: Records) -> FaceDataset:
        return FaceDataset(self.name, records, self._reader, self._rows[rows], self.problems)

    def part(self, name: str) -> FaceDataset:
        """The images of one official split.

        Args:
            name: A split that occurs in ``parts``; ``"merged"`` for the public and private test together.

        Raises:
            UnknownChoice: If there is no such split; lists those there are.
        """
        table = part_table(self.records)
        if not table:
            raise UnknownChoice(
                f"{self.name} has no official splits, so no {name!r}; make some, such as random-80-20."
            )
        return self.subset(choose(table, name, f"split of {self.name}"))

    def with_classes(self, classes: Sequence[str], *, allow_missing: bool = False) -> FaceDataset:
        """The images of these classes only, numbered in this order.

        Args:
            classes: The classes wanted.
            allow_missing: Whether a class of which the dataset has no images may be asked for. It then exists
                and stays empty, as when a model with seven classes is tested on CK+, which has no neutral
                faces.

        Raises:
            UnknownChoice: If a class is missing.
        """
        present = [name for name in classes if name in self.classes] if allow_missing else list(classes)
        label_map(classes, classes)  # refuses repetitions
        label_map(self.classes, present)  # refuses classes that are missing
        number = {name: position for position, name in enumerate(classes)}
        table = np.array([*(number.get(name, -1) for name in self.classes), -1])  # the last is label -1's
        labels = table[self.records.labels]
        rows = np.flatnonzero(labels >= 0)
        return self._select(rows, replace(self.records.take(rows), labels=labels[rows], classes=tuple(classes)))

    def _checked(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> NDArray[np.int64]:
        rows = np.asarray(indices)
        if rows.size == 0:
            return np.zeros(0, dtype=np.int64)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise InvalidOption(
                f"indices of shape {rows.shape} and type {rows.dtype}: a list of whole numbers is needed."
            )
        if rows.min() < 0 or rows.max() >= len(self):
            raise InvalidOption(f"indices run from {rows.min()} to {rows.max()}; {self.name} has {len(self)} images.")
        return rows.astype(np.int64)
