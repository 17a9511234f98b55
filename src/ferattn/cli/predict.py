"""``ferattn predict``: the faces in pictures and videos, and the emotion that each shows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferattn.cli.output import require_writable
from ferattn.cli.recognizer import (
    AlignOption,
    CheckpointOption,
    DetectorOption,
    EqualiseOption,
    MarginOption,
    MinScoreOption,
    ModelOption,
    WeightsOption,
    open_recognizer,
    read_pictures,
)

if TYPE_CHECKING:
    from ferattn.predict import EmotionRecognizer, Frame, RecognizedFace

__all__ = ["predict"]

VIDEOS = frozenset({
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts",
    ".webm", ".wmv",
})  # fmt: skip
"""Suffixes of what OpenCV is given to read."""


@dataclass(frozen=True)
class _Looked:
    """A picture or a frame that was looked at, and what came of it."""

    name: str
    seconds: float | None = None
    problem: str = ""
    faces: list[RecognizedFace] = field(default_factory=list)


def predict(
    sources: Annotated[
        list[Path], typer.Argument(metavar="PICTURES", help="Pictures, videos, folders of both, zips of pictures.")
    ],
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    detector: DetectorOption = "auto",
    weights: WeightsOption = None,
    min_score: MinScoreOption = None,
    margin: MarginOption = 0.0,
    align: AlignOption = True,
    equalise: EqualiseOption = None,
    tta: Annotated[str, typer.Option(help="Test-time views: none, flip or ten-crop.")] = "none",
    every: Annotated[
        float | None,
        typer.Option(help="Videos: seconds from one frame to the next, 0 for all; by default 1, with --smooth 0."),
    ] = None,
    smooth: Annotated[
        float, typer.Option(help="Videos: seconds after which what a face showed counts half; 0 for no smoothing.")
    ] = 0.0,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write a line for each face here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything here.")] = None,
) -> None:
    """Find the faces in pictures and videos, and say which emotion each shows.

    What cannot be read, or has no face, is a line that says so. It tells how raters would label a face, not what a
    person feels; where that is forbidden stands in the model card.
    """
    from rich.console import Console
    from rich.text import Text

    from ferattn.errors import InvalidInput, InvalidOption

    for option, path in (("--csv", csv_file), ("--json", json_file)):
        require_writable(option, path)
    if csv_file is not None and json_file is not None and csv_file.resolve() == json_file.resolve():
        raise InvalidOption(f"--csv and --json: {str(csv_file)!r} is one file; give two.")
    if every is None:
        every = 0.0 if smooth else 1.0
    for option, seconds in (("--every", every), ("--smooth", smooth)):
        if not 0 <= seconds < math.inf:
            raise InvalidOption(f"{option} {seconds:g}: seconds, 0 or more.")
    if smooth and not any(source.is_dir() or source.suffix.lower() in VIDEOS for source in sources):
        raise InvalidOption(f"--smooth {smooth:g}: there is no video among {', '.join(map(str, sources))}.")
    if 0 < smooth < every:
        raise InvalidOption(
            f"--smooth {smooth:g} --every {every:g}: of a frame so long ago little is left; look more often."
        )
    console = Console(soft_wrap=True, highlight=False)
    recognizer, name = open_recognizer(
        model,
        checkpoint,
        equalise,
        detector,
        weights,
        min_score,
        console=console,
        margin=margin,
        align=align,
        views=tta,
    )
    looked: list[_Looked] = []
    try:
        for one in _look(recognizer, sources, partial(recognizer.video, every=every, smooth=smooth)):
            looked.append(one)
            console.print(Text("\n".join(_lines(one))))
    finally:  # what was seen is kept, whatever happened
        if looked:
            _write_json(json_file, recognizer, name, smooth, looked)
            _write_csv(csv_file, looked, recognizer.classes)
    if not looked:
        raise InvalidInput(f"no pictures in {', '.join(map(str, sources))}.")
    unreadable = sum(bool(one.problem) for one in looked)
    console.print(
        f"pictures and frames: {len(looked)}, faces: {sum(len(one.faces) for one in looked)}, without a face: "
        f"{sum(not one.faces and not one.problem for one in looked)}, not readable: {unreadable}; weights {name}, "
        f"detector {recognizer.detector.name}",
        markup=False,
    )
    if unreadable == len(looked):
        raise typer.Exit(1)


def _look(
    recognizer: EmotionRecognizer, sources: Iterable[Path], video: Callable[[Path], Iterator[Frame]]
) -> Iterator[_Looked]:
    """Everything that is named, in its order; in folders the pictures first, then the videos, each by name."""
    from ferattn.errors import InvalidInput

    for source in sources:
        try:
            if source.is_dir() or source.suffix.lower() == ".zip":
                yield from _look_into(recognizer, source, video)
            elif source.suffix.lower() in VIDEOS:
                for frame in video(source):
                    yield _Looked(str(source), frame.seconds, frame.problem, frame.faces)
            else:
                yield _Looked(str(source), faces=recognizer(source))
        except InvalidInput as error:
            yield _Looked(str(source), problem=str(error))


def _look_into(
    recognizer: EmotionRecognizer, source: Path, video: Callable[[Path], Iterator[Frame]]
) -> Iterator[_Looked]:
    """The pictures of a folder or a zip, one after the other, and the videos of a folder."""
    from ferattn.errors import DetectorFailed
    from ferattn.faces.sources import open_source

    notes: deque[_Looked] = deque()  # what has been read, and not been handed out

    with open_source(source) as files:
        items = files.items()
        videos = [item.name for item in items if Path(item.name).suffix.lower() in VIDEOS]

        def pictures() -> Iterator[Any]:
            for where, problem, image in read_pictures(files, items, source):
                notes.append(_Looked(where, problem=problem))
                if image is not None:
                    yield image

        def with_outcome(**outcome: Any) -> Iterator[_Looked]:
            """What could not be read, and the first picture that could."""
            while notes[0].problem:
                yield notes.popleft()
            yield replace(notes.popleft(), **outcome)

        for found in recognizer.attempts(pictures(), channels="rgb"):
            failed = isinstance(found, DetectorFailed)
            yield from with_outcome(**({"problem": str(found)} if failed else {"faces": found}))
        yield from notes
    if source.is_dir():
        yield from _look(recognizer, [source / name for name in videos], video)
    else:
        yield from (_Looked(f"{source}/{name}", problem="a video in a zip: unpack it first") for name in videos)


def _lines(one: _Looked) -> list[str]:
    """What the terminal shows of a picture."""
    where = one.name if one.seconds is None else f"{one.name} {one.seconds:.2f} s"
    found = []
    for face in one.faces:
        x, y, w, h = (round(number) for number in face.face.box)
        found.append(f"{where}  {w}x{h}+{x}+{y}  {face.emotion} {face.confidence:.2f}")
    return found or [f"{where}  {one.problem or 'no face'}"]


def _write_json(
    path: Path | None, recognizer: EmotionRecognizer, name: str, smooth: float, looked: list[_Looked]
) -> None:
    from ferattn.cli.output import write_json

    report = {
        "weights": name,
        "detector": recognizer.detector.name,
        "classes": list(recognizer.classes),
        "equalise": recognizer.equalise,
        "temperature": recognizer.temperature,
        "views": recognizer.views,
        "smooth": smooth,
        "pictures": [_told(one) for one in looked],
    }
    write_json(path, report)


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
                "track": face.track,
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
    place = ("face", "x", "y", "width", "height", "score", "track")
    writer.writerow(["picture", "seconds", "problem", *place, "emotion", *classes])
    for one in looked:
        time = "" if one.seconds is None else f"{one.seconds:.3f}"
        if not one.faces:
            writer.writerow([one.name, time, one.problem or "no face", *[""] * (len(place) + 1 + len(classes))])
        for number, face in enumerate(one.faces, 1):
            box = [f"{value:.1f}" for value in face.face.box]
            score = "" if face.face.score is None else f"{face.face.score:.4f}"
            shares = [f"{face.probabilities[name]:.6f}" for name in classes]
            track = "" if face.track is None else face.track
            writer.writerow([one.name, time, "", number, *box, score, track, face.emotion, *shares])
    write_atomically(path, buffer.getvalue().encode(errors="surrogateescape"))  # names in any encoding
