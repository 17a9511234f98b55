"""Any folder of pictures with one folder for each class, with or without a folder for each split above."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np

from ferattn.data.dataset import FaceDataset, FileReader, Records
from ferattn.data.images import is_image_name
from ferattn.data.labels import canonical, in_vocabulary_order
from ferattn.data.problems import Problems
from ferattn.data.sources import open_source
from ferattn.errors import InvalidInput, UnknownChoice

__all__ = ["ImageFolder"]

PART_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


_TAKEN = ("FER2013", "CK+", "JAFFE")
"""Names of datasets that are no folders of classes."""


class ImageFolder(FaceDataset):
    """Pictures in ``root/<class>/`` or ``root/<split>/<class>/``, in a folder or a zip.

    Folder names that mean an emotion take the vocabulary's name and order (``happiness`` becomes ``happy``), and
    among those a folder that means none is reported. Where no more than half of the names are emotions, all stay as
    they are, in alphabetical order.

    Args:
        root: A folder or a zip.
        names: Class by folder name, for folders called ``1`` to ``7`` and the like; folders that are not in
            it are reported.
        on_error: ``"raise"`` stops at the first bad folder, ``"skip"`` lists them in ``skipped``.

    Raises:
        InvalidInput: If there are no pictures in class folders.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        names: Mapping[str, str] | None = None,
        on_error: str = "raise",
    ) -> None:
        problems = Problems(on_error)
        source = open_source(root, problems)
        pictures = [name for name in source.names if is_image_name(name)]
        top = _common_top(pictures)
        rows: list[tuple[str, str, str]] = []  # file, folder of the class, split
        for name in pictures:
            parts = PurePosixPath(name).parts[top:]
            has_part = len(parts) > 2 and parts[0].lower() in PART_FOLDERS
            if len(parts) < 2:
                problems.add(f"{source.root}: {name}", "a picture outside the class folders.")
                continue
            rows.append((name, parts[1 if has_part else 0], PART_FOLDERS[parts[0].lower()] if has_part else ""))
        for folder in _empty_folders(source.root, {row[1] for row in rows}):
            problems.add(folder, "an empty folder: a class without pictures cannot be learnt.")
        class_of = _class_names({row[1] for row in rows}, names, problems)
        rows = [row for row in rows if row[1] in class_of]
        if not rows:
            raise InvalidInput(f"{source.root}: no pictures in folders, one for each class.")
        classes = in_vocabulary_order(class_of.values())
        with_parts = all(row[2] for row in rows)
        if not with_parts and any(row[2] for row in rows):
            odd = next(row for row in rows if not row[2])
            raise InvalidInput(f"{source.root}: {odd[0]} lies beside the folders of the splits, not in one of them.")
        records = Records(
            ids=tuple("/".join(PurePosixPath(row[0]).parts[top:]) for row in rows),
            labels=np.array([classes.index(class_of[row[1]]) for row in rows], dtype=np.int64),
            classes=classes,
            parts=tuple(row[2] for row in rows) if with_parts else None,
        )
        name = source.root.name or str(source.root)
        super().__init__(
            f"{name} folder" if name in _TAKEN else name,
            records,
            FileReader(source, [row[0] for row in rows]),
            problems=problems,
        )


def _common_top(pictures: list[str]) -> int:
    """How many folders all pictures share that are no class and no split: a zip often wraps all in one."""
    folders = [PurePosixPath(name).parts[:-1] for name in pictures]
    top = 0
    while (
        folders
        and all(len(parts) > top + 1 for parts in folders)
        and len({parts[top] for parts in folders}) == 1
        and folders[0][top].lower() not in PART_FOLDERS
    ):
        top += 1
    return top


def _empty_folders(root: Path, classes: set[str]) -> list[str]:
    """Folders with nothing in them, that would be classes of their own; a zip seldom has them."""
    return sorted(
        str(PurePosixPath(where).relative_to(root))
        for where, folders, files in (os.walk(root) if root.is_dir() else ())
        if not folders
        and not files
        and Path(where).name not in classes
        and not Path(where).name.startswith((".", "_"))
    )


def _class_names(folders: set[str], names: Mapping[str, str] | None, problems: Problems) -> dict[str, str]:
    if names is not None:
        for folder in sorted(folders - set(names)):
            problems.add(folder, f"unknown folder; names= has: {', '.join(names)}.")
        return {folder: names[folder] for folder in folders & set(names)}
    emotions = {}
    for folder in folders:
        with suppress(UnknownChoice):
            emotions[folder] = canonical(folder)
    if 2 * len(emotions) <= len(folders):
        return {folder: folder for folder in folders}
    for folder in sorted(folders - set(emotions)):  # one stray folder must not rename and renumber the others
        problems.add(
            folder,
            "unknown folder: no emotion by name. Rename it, take it away, or say which it is with names= in Python.",
        )
    return emotions
