"""FER2013 in every form in which people have it (Goodfellow et al. 2013, arXiv 1307.0414)."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ferattn.data.csvfile import read_pixel_csv
from ferattn.data.dataset import ArrayReader, FaceDataset, FileReader, Reader, Records, part_table
from ferattn.data.images import is_image_name
from ferattn.data.labels import FER2013_CLASSES, canonical
from ferattn.data.problems import Problems
from ferattn.data.sources import Source, open_source
from ferattn.errors import InvalidInput, UnknownChoice, choose

__all__ = ["FER2013", "OFFICIAL_COUNTS"]

OFFICIAL_COUNTS = {
    "train": dict(zip(FER2013_CLASSES, (3995, 436, 4097, 7215, 4830, 3171, 4965), strict=True)),
    "public": dict(zip(FER2013_CLASSES, (467, 56, 496, 895, 653, 415, 607), strict=True)),
    "private": dict(zip(FER2013_CLASSES, (491, 55, 528, 879, 594, 416, 626), strict=True)),
}
"""Images of each class in the three official splits: 28,709, 3,589 and 3,589."""

_USAGE = {"training": "train", "publictest": "public", "privatetest": "private"}
_FOLDERS = {"train": "train", "test": "merged", "validation": "merged"}
_FER_FOLDERS = {name: name for name in FER2013_CLASSES}


class FER2013(FaceDataset):
    """The 35,887 grey images of 48 x 48 pixels in seven classes.

    Reads, in this order of preference, ``fer2013.csv``, ``icml_face_data.csv``, ``train.csv`` with
    ``test.csv``, or the Kaggle folders ``train/<class>/`` and ``test/<class>/``; at ``root``, up to two
    folders below it, or in a zip. The official split of an image comes from the usage column or from its
    file's name (``Training_``, ``PublicTest_``, ``PrivateTest_``).

    Args:
        root: A folder, a zip, or one of the CSV files.
        split: ``"train"``, ``"public"``, ``"private"``, ``"all"``; ``"merged"`` for the public and the
            private test together (7,178 images, what the Kaggle folders call test); ``"unlabelled"`` for a
            ``test.csv`` that has no labels.
        on_error: ``"raise"`` stops at the first bad file or row, ``"skip"`` lists them in ``skipped``.

    Raises:
        InvalidInput: If nothing of that kind is found, or a file or row is bad; names it.
        UnknownChoice: If the split is not one the files have.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "all", *, on_error: str = "raise") -> None:
        problems = Problems(on_error)
        source = open_source(root, problems)
        csv_names = _find_csv(source)
        records, reader = _from_csv(source, csv_names, problems) if csv_names else _from_folders(source, problems)
        rows = _rows_of(split, records)
        super().__init__("FER2013", records.take(rows), reader, rows, problems)

    @property
    def is_official(self) -> bool:
        """Whether each official split that is present has the official number of images of each class."""
        parts = self.parts or ()
        counts = Counter(zip(parts, self.records.labels.tolist(), strict=True))
        return (
            bool(parts)
            and set(parts) <= set(OFFICIAL_COUNTS)
            and all(
                counts[part, label] == OFFICIAL_COUNTS[part][name]
                for part in set(parts)
                for label, name in enumerate(self.classes)
            )
        )


def _rows_of(split: str, records: Records) -> NDArray[np.int64]:
    table = part_table(records)
    table["all"] = np.flatnonzero(records.labels >= 0)
    if split in (*_USAGE.values(), "merged") and split not in table:
        why = ""
        if "merged" in table:
            why = "; the files do not say which test images are public and which private"
        elif "unlabelled" in table:
            why = "; test.csv has no emotion column, so its images have no labels"
        raise UnknownChoice(f"FER2013 has no split {split!r} here{why}. Splits: {', '.join(table)}.")
    return choose(table, split, "split of FER2013")


def _find_csv(source: Source) -> list[str]:
    """The CSV files to read: one with every split, or train.csv and test.csv."""
    by_name: dict[str, list[str]] = {}
    for name in source.names:
        path = PurePosixPath(name)
        if path.suffix.lower() == ".csv" and len(path.parts) <= 3:
            by_name.setdefault(path.name.lower(), []).append(name)
    for wanted in (("fer2013.csv",), ("icml_face_data.csv",), ("train.csv", "test.csv")):
        found = [
            sorted(by_name[name], key=lambda path: (path.count("/"), path)) for name in wanted if name in by_name
        ]
        if found:
            return [names[0] for names in found]
    return []


def _from_csv(source: Source, names: list[str], problems: Problems) -> tuple[Records, Reader]:
    tables = []
    for name in names:
        part = {"train.csv": "train", "test.csv": "merged"}.get(PurePosixPath(name).name.lower())
        with source.open(name) as stream:
            tables.append(
                read_pixel_csv(
                    stream, name, problems, side=48, classes=len(FER2013_CLASSES), usages=_USAGE, part=part
                )
            )
    labels = np.concatenate([table.labels for table in tables])
    parts = [part for table in tables for part in table.parts]
    if not len(labels):
        raise InvalidInput(f"{source.root}: no usable row in {', '.join(names)}.")
    records = Records(
        ids=tuple(row_id for table in tables for row_id in table.ids),
        labels=labels,
        classes=FER2013_CLASSES,
        parts=tuple("unlabelled" if label < 0 else part for part, label in zip(parts, labels, strict=True)),
    )
    return records, ArrayReader(np.concatenate([table.pixels for table in tables]))


def _from_folders(source: Source, problems: Problems) -> tuple[Records, Reader]:
    rows: list[tuple[str, str, int, str]] = []  # id, file, label, part
    bad_folders: set[str] = set()
    tops: set[tuple[str, ...]] = set()
    for name in source.names:
        if not is_image_name(name):
            continue
        path = PurePosixPath(name)
        folder = str(path.parent)
        if len(path.parts) < 3 or path.parts[-3].lower() not in _FOLDERS:
            if folder not in bad_folders:
                bad_folders.add(folder)
                problems.add(f"{source.root}: {folder}", "not a folder of FER2013 (train/<class> or test/<class>).")
            continue
        where = _FOLDERS[path.parts[-3].lower()]
        try:
            label = FER2013_CLASSES.index(choose(_FER_FOLDERS, canonical(path.parts[-2]), "class of FER2013"))
        except UnknownChoice as error:
            if folder not in bad_folders:
                bad_folders.add(folder)
                problems.add(f"{source.root}: {folder}", str(error))
            continue
        part = _USAGE.get(path.name.split("_")[0].lower(), where)
        if (part == "train") != (where == "train"):
            problems.add(f"{source.root}: {name}", f"its name says it belongs to {part}, its folder says {where}.")
            continue
        tops.add(path.parts[:-3])
        rows.append(("/".join(path.parts[-3:]), name, label, part))
    if len(tops) > 1:
        copies = ", ".join(sorted("/".join(top) or "." for top in tops))
        raise InvalidInput(f"{source.root}: several copies of FER2013, in {copies}; give one of these folders.")
    if not rows:
        raise InvalidInput(
            f"{source.root}: no FER2013 here. Looked for fer2013.csv, icml_face_data.csv, train.csv, "
            f"test.csv, and images in train/<class>/ and test/<class>/ ({', '.join(FER2013_CLASSES)})."
        )
    records = Records(
        ids=tuple(row[0] for row in rows),
        labels=np.array([row[2] for row in rows], dtype=np.int64),
        classes=FER2013_CLASSES,
        parts=tuple(row[3] for row in rows),
    )
    return records, FileReader(source, [row[1] for row in rows])
