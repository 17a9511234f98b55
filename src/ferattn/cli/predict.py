"""``ferattn predict``: the faces in pictures and videos, and the emotion that each shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferattn.cli.output import require_writable

if TYPE_CHECKING:
    from ferattn.predict import EmotionRecognizer, RecognizedFace

__all__ = ["predict"]

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_AT_ONCE = 64  # pictures


@dataclass(frozen=True)
class _Looked:
    """A picture or a frame that was looked at, and what came of it."""

    name: str
    seconds: float | None = None
    problem: str = ""
    faces: list[RecognizedFace] = field(default_factory=list)


def predict(
    sources: Annotated[
        list[Path], typer.Argument(metavar="PICTURES", help="Pictures, videos, folders or zips of pictures.")
    ],
    model: Annotated[str | None, typer.Option(help="Whose published weights; by default cnn_se's.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The folder of a run, instead.")] = None,
    detector: Annotated[
        str, typer.Option(help="auto, yunet, yolo5face, cascade, or none: the whole picture is the face.")
    ] = "auto",
    weights: Annotated[Path | None, typer.Option(help="ONNX file of yunet or yolo5face.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out faces with a lower confidence.")] = None,
    margin: Annotated[float, typer.Option(help="Added around the face, as a share of it.")] = 0.0,
    align: Annotated[bool, typer.Option(help="Level the eyes where they are known.")] = True,
    equalize: Annotated[
        bool | None, typer.Option(help="Equalise histograms; by default as the pictures that were learnt from.")
    ] = None,
    tta: Annotated[str, typer.Option(help="Test-time views: none, flip or ten-crop.")] = "none",
    every: Annotated[float, typer.Option(help="Videos: seconds from one frame to the next; 0 for all.")] = 1.0,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write a line for each face here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything here.")] = None,
) -> None:
    """Find the faces in pictures and videos, and say which emotion each shows.

    A picture that cannot be read, or has no face, is a line that says so. It tells how raters would label a face, not
    what a person feels. Reading emotions at work and in education is forbidden in the European Union.
    """
    from rich.console import Console
    from rich.table import Table

    from ferattn.cli.evaluate import write_json
    from ferattn.errors import InvalidInput

    for option, path in (("--csv", csv_file), ("--json", json_file)):
        require_writable(option, path)
    options = {"weights": weights, "min_score": min_score}
    recognizer, name = _recognizer(
        model,
        checkpoint,
        equalize,
        detector=(detector, {key: value for key, value in options.items() if value is not None}),
        margin=margin,
        align=align,
        views=tta,
    )
    table = Table(box=None, header_style="bold")
    for heading in ("picture", "s", "face", "emotion", "probability"):
        table.add_column(heading, overflow="fold")
    looked: list[_Looked] = []
    for one in _look(recognizer, sources, every):
        looked.append(one)
        time = "" if one.seconds is None else f"{one.seconds:.2f}"
        for face in one.faces:
            x, y, w, h = (round(number) for number in face.face.box)
            table.add_row(one.name, time, f"{w}x{h}+{x}+{y}", face.emotion, f"{face.confidence:.2f}")
        if not one.faces:
            table.add_row(one.name, time, one.problem or "no face", "", "")
    if not looked:
        raise InvalidInput(f"no pictures in {', '.join(map(str, sources))}.")
    report = {
        "weights": name,
        "detector": recognizer.detector.name,
        "classes": list(recognizer.classes),
        "equalized": recognizer.equalize,
        "temperature": recognizer.temperature,
        "views": recognizer.views,
        "pictures": [_told(one) for one in looked],
    }
    write_json(json_file, report)
    _write_csv(csv_file, looked, recognizer.classes)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    faces = sum(len(one.faces) for one in looked)
    without = sum(not one.faces for one in looked)
    console.print(
        f"{faces} faces in {len(looked)} pictures, {without} without one; weights {name}, detector "
        f"{recognizer.detector.name}",
        markup=False,
    )


def _recognizer(
    model: str | None,
    checkpoint: Path | None,
    equalize: bool | None,
    *,
    detector: tuple[str, dict[str, Any]],
    **options: Any,
) -> tuple[EmotionRecognizer, str]:
    """What recognises, and the name of its weights."""
    import torch

    from ferattn.cli.evaluate import open_trained
    from ferattn.faces import make_detector
    from ferattn.predict import EmotionRecognizer, open_pretrained
    from ferattn.training import RunFolder

    options["detector"] = make_detector(detector[0], **detector[1])
    if checkpoint is None:
        found = open_pretrained(model or "cnn_se")
        network, transform, classes, name = found.model, found.transform, found.classes, found.name
        size, channels, temperature = max(found.size), found.channels, found.temperature
        equalized = found.equalized
    else:
        run = RunFolder(checkpoint)
        network, transform, classes = open_trained(run, model)
        size, channels = run.config["recipe"]["size"], run.config["recipe"]["channels"]
        temperature, name, equalized = run.results["temperature"], str(checkpoint), False
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    options |= {"size": size, "channels": channels, "temperature": temperature or 1.0}
    options["equalize"] = equalized if equalize is None else equalize
    return EmotionRecognizer(network, transform, classes, **options), name


def _look(recognizer: EmotionRecognizer, sources: Iterable[Path], every: float) -> Iterator[_Looked]:
    """Everything that is named, in its order; folders by name."""
    from ferattn.errors import InvalidInput

    for source in sources:
        if source.suffix.lower() in VIDEOS:
            for frame in recognizer.video(source, every=every):
                yield _Looked(str(source), frame.seconds, faces=frame.faces)
        elif source.is_dir() or source.suffix.lower() == ".zip":
            yield from _look_into(recognizer, source)
        else:
            try:
                yield _Looked(str(source), faces=recognizer(source))
            except InvalidInput as error:
                yield _Looked(str(source), problem=str(error))


def _look_into(recognizer: EmotionRecognizer, source: Path) -> Iterator[_Looked]:
    """The pictures of a folder or a zip, many at a time."""
    from ferattn.errors import InvalidInput
    from ferattn.faces import read_picture
    from ferattn.faces.sources import open_source

    with ExitStack() as stack:
        pictures = stack.enter_context(open_source(source))
        items = [item for item in pictures.items() if item.problem != "not a picture"]
        for start in range(0, len(items), _AT_ONCE):
            images, problems = [], {}
            for item in items[start : start + _AT_ONCE]:
                problems[item.name] = f"{item.problem}: {item.detail}" if item.problem else ""
                try:
                    images.append(None if item.problem else read_picture(pictures.read(item.name)))
                except InvalidInput as error:
                    problems[item.name] = str(error)
                    images.append(None)
            faces = recognizer.stream([image for image in images if image is not None], channels="rgb")
            for image, (name, problem) in zip(images, problems.items(), strict=True):
                where = f"{source}/{name}"
                yield _Looked(where, problem=problem) if image is None else _Looked(where, faces=next(faces))


def _told(one: _Looked) -> dict[str, Any]:
    """A picture as JSON has it."""
    return {
        "picture": one.name,
        "seconds": one.seconds,
        "problem": one.problem or None,
        "faces": [
            {
                "box": list(face.face.box),
                "score": face.face.score,
                "emotion": face.emotion,
                "probabilities": dict(face.probabilities),
            }
            for face in one.faces
        ],
    }


def _write_csv(path: Path | None, looked: Iterable[_Looked], classes: tuple[str, ...]) -> None:
    """A line for each face, and one for each picture without."""
    import csv
    import io

    from ferattn.files import write_atomically

    if path is None:
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    place = ("face", "x", "y", "width", "height", "score")
    writer.writerow(["picture", "seconds", "problem", *place, "emotion", *classes])
    for one in looked:
        time = "" if one.seconds is None else f"{one.seconds:.3f}"
        if not one.faces:
            writer.writerow([one.name, time, one.problem or "no face", *[""] * (len(place) + 1 + len(classes))])
        for number, face in enumerate(one.faces, 1):
            box = [f"{value:.1f}" for value in face.face.box]
            score = "" if face.face.score is None else f"{face.face.score:.4f}"
            shares = [f"{face.probabilities[name]:.6f}" for name in classes]
            writer.writerow([one.name, time, "", number, *box, score, face.emotion, *shares])
    write_atomically(path, buffer.getvalue().encode())
