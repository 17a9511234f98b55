"""Open a dataset by its kind, or find out the kind from the names of the files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import PurePosixPath

from ferattn.data.ckplus import CKPlus
from ferattn.data.dataset import FaceDataset
from ferattn.data.fer2013 import FER2013
from ferattn.data.folder import ImageFolder
from ferattn.data.images import is_image_name
from ferattn.data.jaffe import JAFFE
from ferattn.data.problems import Problems
from ferattn.data.sources import open_source
from ferattn.errors import InvalidInput, choose

__all__ = ["DATASETS", "guess_kind", "open_dataset"]

DATASETS: dict[str, Callable[..., FaceDataset]] = {
    "fer2013": FER2013,
    "ckplus": CKPlus,
    "jaffe": JAFFE,
    "folder": ImageFolder,
}
"""The datasets by name; each takes ``root`` and ``on_error``."""

_SIGNS = {
    "fer2013": re.compile(
        r"(.*/)?((fer2013|icml_face_data|train)\.csv|(training|publictest|privatetest)_\d+\.\w+)",
        re.IGNORECASE,
    ),
    "ckplus": re.compile(r"(.*/)?S\d{3}_\d{3}_\d{8}\.\w+", re.IGNORECASE),
    "jaffe": re.compile(r"(.*/)?[A-Z]{2}\.(AN|DI|FE|HA|NE|SA|SU)\d\.\d+\.(?:tiff?|png|jpe?g|bmp)", re.IGNORECASE),
}


def guess_kind(root: str | os.PathLike[str]) -> str:
    """The entry of ``DATASETS`` that the names of the files under ``root`` point to.

    Raises:
        InvalidInput: If there is neither a known file nor a picture.
    """
    source = open_source(root, Problems("skip"))
    for name in source.names:
        for kind, sign in _SIGNS.items():
            if sign.fullmatch(name):
                return kind
    if any(is_image_name(PurePosixPath(name).name) for name in source.names):
        return "folder"
    raise InvalidInput(f"{source.root}: neither pictures nor a known dataset ({', '.join(DATASETS)}) in it.")


def open_dataset(root: str | os.PathLike[str], kind: str | None = None, *, on_error: str = "raise") -> FaceDataset:
    """Open the dataset at ``root``.

    Args:
        root: A folder, a zip or a CSV file.
        kind: An entry of ``DATASETS``; None guesses from the names of the files.
        on_error: ``"raise"`` stops at the first bad file or row, ``"skip"`` lists them in ``skipped``.

    Raises:
        UnknownChoice: If there is no such kind.
        InvalidInput: If nothing usable is found.
    """
    opener = choose(DATASETS, guess_kind(root) if kind is None else kind, "dataset")
    return opener(root, on_error=on_error)
