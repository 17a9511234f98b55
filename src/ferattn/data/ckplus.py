"""CK+, the extended Cohn-Kanade set (Lucey et al. 2010): sequences from neutral to the peak of an emotion."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from ferattn.data.dataset import FaceDataset, FileReader, Records
from ferattn.data.images import is_image_name
from ferattn.data.labels import CKPLUS_CODES, canonical, in_vocabulary_order
from ferattn.data.problems import Problems
from ferattn.data.sources import Source, open_source
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice

__all__ = ["CKPlus"]

_FRAME = re.compile(r"(S\d{3})_(\d{3})_(\d{8})\.\w+", re.IGNORECASE)
_EMOTION = re.compile(r"(S\d{3})_(\d{3})_\d{8}_emotion\.txt", re.IGNORECASE)


class _Frame(NamedTuple):
    file: str
    subject: str
    sequence: str
    number: int
    emotion: str


class CKPlus(FaceDataset):
    """CK+ with the subject of every image; up to seven emotions with contempt, and neutral on request.

    Reads the CK+48 folders (``anger/S010_004_00000017.png``: 981 images of 118 subjects, three a sequence, no
    neutral faces) or the original distribution (``cohn-kanade-images/S010/004/S010_004_00000017.png`` with
    the emotion of 327 sequences in ``Emotion/S010/004/S010_004_00000019_emotion.txt``), in a folder or a zip.

    Args:
        root: A folder or a zip.
        frames: How many of the last frames of each sequence to take: the peak and those before it. CK+48 has
            three.
        neutral: Whether to take the first frame of each labelled sequence too, as a neutral face. Only in the
            original distribution, since CK+48 left them out.
        on_error: ``"raise"`` stops at the first bad file, ``"skip"`` lists them in ``skipped``.

    Raises:
        InvalidInput: If no such files are found, or one is bad; names it.
        InvalidOption: If ``frames`` is not positive, or ``neutral`` is asked of CK+48.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, frames: int = 3, neutral: bool = False, on_error: str = "raise"
    ) -> None:
        if not isinstance(frames, int) or frames < 1:
            raise InvalidOption(f"frames={frames!r}: take at least the last frame of each sequence.")
        problems = Problems(on_error)
        source = open_source(root, problems)
        original = any("cohn-kanade-images" in name.lower().split("/")[:-1] for name in source.names)
        if neutral and not original:
            raise InvalidOption(
                "neutral=True: the CK+48 folders hold no neutral frames; use the original distribution."
            )
        found = _original(source, problems) if original else _folders(source, problems)
        if not found:
            raise InvalidInput(
                f"{source.root}: no CK+ here. Looked for <emotion>/S010_004_00000017.png and for "
                "cohn-kanade-images/ with Emotion/."
            )
        chosen = sorted(_choose(found, frames, neutral))
        classes = in_vocabulary_order(frame.emotion for frame in chosen)
        records = Records(
            ids=tuple(PurePosixPath(frame.file).stem for frame in chosen),
            labels=np.array([classes.index(frame.emotion) for frame in chosen], dtype=np.int64),
            classes=classes,
            subjects=tuple(frame.subject for frame in chosen),
        )
        super().__init__("CK+", records, FileReader(source, [frame.file for frame in chosen]), problems=problems)


def _choose(found: list[_Frame], frames: int, neutral: bool) -> list[_Frame]:
    sequences: dict[tuple[str, str], list[_Frame]] = {}
    for frame in found:
        sequences.setdefault((frame.subject, frame.sequence), []).append(frame)
    chosen: list[_Frame] = []
    for sequence in sequences.values():
        sequence.sort(key=lambda frame: frame.number)
        # The first frame is neutral: it is never taken for the emotion when it is taken as neutral.
        first = [sequence[0]._replace(emotion="neutral")] if neutral else []
        chosen += first + sequence[len(first) :][-frames:]
    return chosen


def _folders(source: Source, problems: Problems) -> list[_Frame]:
    frames: dict[str, _Frame] = {}
    bad_folders: set[str] = set()
    for name in source.names:
        path = PurePosixPath(name)
        if not is_image_name(name) or len(path.parts) < 2:
            continue
        folder = str(path.parent)
        match = _FRAME.fullmatch(path.name)
        try:
            emotion = canonical(path.parts[-2])
        except UnknownChoice as error:
            if folder not in bad_folders:
                bad_folders.add(folder)
                problems.add(f"{source.root}: {folder}", str(error))
            continue
        if match is None:
            problems.add(f"{source.root}: {name}", "not a name of CK+, such as S010_004_00000017.png.")
            continue
        frame = _Frame(name, match[1].upper(), match[2], int(match[3]), emotion)
        if path.stem in frames:
            problems.add(f"{source.root}: {name}", f"the same frame as {frames[path.stem].file}.")
            continue
        frames[path.stem] = frame
    return list(frames.values())


def _original(source: Source, problems: Problems) -> list[_Frame]:
    by_number = {float(number): name for number, name in CKPLUS_CODES.items()}  # written as 3.0000000e+00
    emotions: dict[tuple[str, str], str] = {}
    for name in source.names:
        match = _EMOTION.fullmatch(PurePosixPath(name).name)
        if match is None:
            continue
        text = source.read(name).decode("ascii", errors="replace").strip()
        try:
            emotion = by_number.get(float(text))
        except ValueError:
            emotion = None
        if emotion is None:
            problems.add(f"{source.root}: {name}", f"{text[:40]!r} is not an emotion's number from 0 to 7.")
        else:
            emotions[match[1].upper(), match[2]] = emotion
    if not emotions:
        raise InvalidInput(f"{source.root}: found cohn-kanade-images, but no Emotion/**/*_emotion.txt beside it.")
    frames: dict[str, _Frame] = {}
    for name in source.names:
        path = PurePosixPath(name)
        if not is_image_name(name) or "cohn-kanade-images" not in name.lower().split("/"):
            continue
        match = _FRAME.fullmatch(path.name)
        if match is None:
            problems.add(f"{source.root}: {name}", "not a name of CK+, such as S010_004_00000017.png.")
            continue
        label = emotions.get((match[1].upper(), match[2]))
        if label is None:  # 266 of the 593 sequences have no emotion
            continue
        if path.stem in frames:
            problems.add(f"{source.root}: {name}", f"the same frame as {frames[path.stem].file}.")
            continue
        frames[path.stem] = _Frame(name, match[1].upper(), match[2], int(match[3]), label)
    return list(frames.values())
