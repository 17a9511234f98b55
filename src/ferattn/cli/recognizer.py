"""What ``predict``, ``explain`` and ``export`` share: options for weights and faces, and what they open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

    from ferattn.faces.sources import Item, Source
    from ferattn.predict import EmotionRecognizer

__all__ = [
    "AlignOption",
    "CheckpointOption",
    "DetectorOption",
    "EqualiseOption",
    "MarginOption",
    "MinScoreOption",
    "ModelOption",
    "WeightsOption",
    "open_recognizer",
    "read_pictures",
]

ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Whose published weights, or local-dir:FOLDER with those of `ferattn ship`; by default cnn_se's."
    ),
]
CheckpointOption = Annotated[Path | None, typer.Option(help="The folder of a run, instead.")]
DetectorOption = Annotated[
    str, typer.Option(help="auto, yunet, yolo5face, cascade, or none: the whole picture is the face.")
]
WeightsOption = Annotated[Path | None, typer.Option(help="ONNX file of yunet or yolo5face.")]
MinScoreOption = Annotated[float | None, typer.Option(help="Leave out faces with a lower confidence.")]
MarginOption = Annotated[float, typer.Option(help="Added around the face, as a share of it.")]
AlignOption = Annotated[bool, typer.Option(help="Level the eyes where they are known.")]
EqualiseOption = Annotated[
    bool | None, typer.Option(help="Equalise histograms; by default as in the pictures that were learnt from.")
]


def open_recognizer(
    model: str | None,
    checkpoint: Path | None,
    equalise: bool | None,
    detector: str,
    weights: Path | None,
    min_score: float | None,
    *,
    console: Console,
    **options: Any,
) -> tuple[EmotionRecognizer, str]:
    """What recognises, from the words that were typed, and its weights' name."""
    import torch

    from ferattn.cli.evaluate import open_weights
    from ferattn.errors import InvalidOption
    from ferattn.faces import make_detector
    from ferattn.predict import EmotionRecognizer

    of_detector = {
        name: value for name, value in (("weights", weights), ("min_score", min_score)) if value is not None
    }
    if of_detector and detector == "auto":
        raise InvalidOption("--weights and --min-score are for one detector: name it, such as --detector yunet.")
    found = open_weights(model, checkpoint)
    if found.equalised is None and equalise is None:
        console.print("not recorded whether the weights learnt from equalised pictures: --equalise or --no-equalise?")
    found.model.to("cuda" if torch.cuda.is_available() else "cpu")
    if equalise is not None:
        options["equalise"] = equalise
    recognizer = EmotionRecognizer.of(found, detector=make_detector(detector, **of_detector), **options)
    return recognizer, found.name


def read_pictures(
    files: Source, items: Iterable[Item], source: Path
) -> Iterator[tuple[str, str, NDArray[Any] | None]]:
    """Of each picture in a folder or a zip where it is, and its pixels (RGB or gray) or else what the problem is."""
    from ferattn.errors import InvalidInput
    from ferattn.faces import read_picture

    for item in items:
        if item.problem == "not a picture":
            continue
        problem, image = item.problem, None
        try:
            image = None if problem else read_picture(files.read(item.name))
        except InvalidInput as error:
            problem = str(error)
        yield f"{source}/{item.name}", problem, image
