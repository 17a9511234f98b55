"""JAFFE, the Japanese Female Facial Expression set (Lyons et al. 1998): 213 images of ten women."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

import numpy as np

from ferattn.data.dataset import FaceDataset, FileReader, Records
from ferattn.data.images import is_image_name
from ferattn.data.labels import FER2013_CLASSES, JAFFE_CODES
from ferattn.data.problems import Problems
from ferattn.data.sources import open_source
from ferattn.errors import InvalidInput

__all__ = ["JAFFE"]

_NAME = re.compile(r"([A-Z]{2})\.([A-Z]{2})\d\.\d+\.(?:tiff?|png|jpe?g|bmp)", re.IGNORECASE)


class JAFFE(FaceDataset):
    """JAFFE with the subject of every image, in FER2013's seven classes.

    Reads files named ``KA.AN1.39.tiff`` (subject KA, anger, first picture, number 39), wherever they lie
    under ``root``; PNG, JPEG and BMP as well, so that crops of them are read too.

    Args:
        root: A folder or a zip.
        on_error: ``"raise"`` stops at the first bad file, ``"skip"`` lists them in ``skipped``.

    Raises:
        InvalidInput: If no such files are found, or an image's name is of another kind; names it.
    """

    def __init__(self, root: str | os.PathLike[str], *, on_error: str = "raise") -> None:
        problems = Problems(on_error)
        source = open_source(root, problems)
        files: dict[str, tuple[str, str, str]] = {}
        for name in source.names:
            if not is_image_name(name):
                continue
            path = PurePosixPath(name)
            match = _NAME.fullmatch(path.name)
            if match is None or match[2].upper() not in JAFFE_CODES:
                problems.add(
                    f"{source.root}: {name}",
                    f"not a name of JAFFE, such as KA.AN1.39.tiff (emotions: {', '.join(JAFFE_CODES)}).",
                )
            elif path.stem.upper() in files:
                problems.add(f"{source.root}: {name}", f"the same picture as {files[path.stem.upper()][0]}.")
            else:
                files[path.stem.upper()] = (name, match[1].upper(), JAFFE_CODES[match[2].upper()])
        if not files:
            raise InvalidInput(f"{source.root}: no JAFFE here. Looked for files named like KA.AN1.39.tiff.")
        ids = sorted(files)
        records = Records(
            ids=tuple(ids),
            labels=np.array([FER2013_CLASSES.index(files[key][2]) for key in ids], dtype=np.int64),
            classes=FER2013_CLASSES,
            subjects=tuple(files[key][1] for key in ids),
        )
        super().__init__("JAFFE", records, FileReader(source, [files[key][0] for key in ids]), problems=problems)
