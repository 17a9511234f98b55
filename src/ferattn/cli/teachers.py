"""The words after ``--teacher``: folders of finished runs, models with published weights, folders of weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ferattn.training import Teacher

__all__ = ["open_teachers", "teacher_origin"]


def open_teachers(words: Sequence[str], channels: int) -> list[Teacher]:
    """The networks that are named.

    Args:
        words: As they were typed.
        channels: Of the student's images.

    Raises:
        InvalidOption: If one cannot be a teacher of such images, or is named twice.
        InvalidInput: If a run has not finished.
    """
    from ferattn.cli.evaluate import open_run
    from ferattn.errors import InvalidOption
    from ferattn.predict import open_pretrained
    from ferattn.training import RunFolder, Teacher
    from ferattn.training.teaching import require_pictures

    found: list[Teacher] = []
    for word in words:
        origin = teacher_origin(word)
        if origin["sha256"] in [one.origin["sha256"] for one in found]:
            raise InvalidOption(f"--teacher {word}: it has the same weights as another.")
        opened = open_run(RunFolder(Path(word)), None) if Path(word).is_dir() else open_pretrained(word)
        teacher = Teacher(
            model=opened.model,
            transform=opened.transform,
            classes=opened.classes,
            size=opened.size,
            channels=opened.channels,
            name=word,
            origin=origin,
        )
        require_pictures(teacher, channels)
        found.append(teacher)
    return found


def teacher_origin(word: str) -> dict[str, Any]:
    """What a run keeps of a teacher, without opening it: see ``warm_start.origin``.

    Raises:
        InvalidOption: If it is none.
        UnknownChoice: If there is no such model.
    """
    from ferattn.errors import InvalidOption
    from ferattn.predict import open_pretrained, read_shipment
    from ferattn.shipped import describe
    from ferattn.spec import architecture_name
    from ferattn.training import RunFolder
    from ferattn.training.warm_start import origin

    folder, (kind, _, path) = Path(word), word.partition(":")
    if kind == "local-dir":
        read_shipment(Path(path))  # refuses what is none of ours
        return origin(Path(path) / "model.safetensors")
    if folder.is_dir():
        if "data" not in RunFolder(folder).config:
            raise InvalidOption(f"--teacher {word}: not the folder of a run. Weights to give away: local-dir:{word}.")
        return origin(folder)
    if "/" in word or folder.suffix == ".safetensors":
        raise InvalidOption(
            f"--teacher {word}: the folder of a finished run, the name of a model, or local-dir:FOLDER."
        )
    shipped = describe(architecture_name(word))
    if shipped is None:
        open_pretrained(word)  # says what is wrong with the name, or that there are no such weights
        raise InvalidOption(f"--teacher {word}: its weights are not those that come with ferattn.")
    return origin(Path(shipped["file"]))
