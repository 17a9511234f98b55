"""``ferattn explain``: where in a face a network looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    import numpy as np
    from numpy.typing import NDArray

    from ferattn.predict import EmotionRecognizer

__all__ = ["explain", "explanations"]


def explain(
    sources: Annotated[
        list[Path], typer.Argument(metavar="PICTURES", help="Pictures, folders of pictures, zips of pictures.")
    ],
    out: Annotated[Path, typer.Option(help="The folder that gets a PNG for each face.")],
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    detector: DetectorOption = "auto",
    weights: WeightsOption = None,
    emotion: Annotated[
        str | None, typer.Option(help="What the places speak for; by default the most probable emotion.")
    ] = None,
    method: Annotated[str, typer.Option(help="Of the map: hires-cam or grad-cam.")] = "hires-cam",
    layer: Annotated[
        str | None, typer.Option(help="The module whose map is taken; by default the last feature map.")
    ] = None,
    min_score: MinScoreOption = None,
    margin: MarginOption = 0.0,
    align: AlignOption = True,
    equalise: EqualiseOption = None,
) -> None:
    """Draw each face with the places that speak for an emotion, and with CBAM's last spatial gate of each size.

    The colours of a map go from 0 to its own maximum, which is written above it in units of the logit. A map shows
    what moves the network's answer, not what a person feels, nor whether the answer is right.
    """
    from rich.console import Console

    from ferattn.errors import InvalidInput, InvalidOption, choose
    from ferattn.explain import METHODS

    choose(METHODS, method, "method")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InvalidOption(f"--out {str(out)!r} is there, and not an empty folder; give a new one.")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    recognizer, name = open_recognizer(
        model, checkpoint, equalise, detector, weights, min_score, console=console, margin=margin, align=align
    )
    rows = {one: index for index, one in enumerate(recognizer.classes)}
    row = None if emotion is None else choose(rows, emotion, "emotion")
    look = partial(explanations, recognizer, row=row, method=method, layer=layer)
    _try_out(recognizer, look)
    looked = failed = 0
    drawn: set[str] = set()
    for where, problem, cuts in _crops(recognizer, sources):
        looked += 1
        failed += bool(problem)
        if not cuts:
            console.print(f"{where}  {problem or 'no face'}")
        for number, face in enumerate(look(cuts), 1):
            if not drawn:
                _make_folder(out)
            path = out / f"{_free_name(where, number, drawn)}.png"
            _draw(path, face)
            console.print(f"{where}  {face['title']}  {path}")
    if not looked:
        raise InvalidInput(f"no pictures in {', '.join(map(str, sources))}.")
    console.print(f"pictures: {looked}, not readable: {failed}, drawn: {len(drawn)}; weights {name}, {method}")
    if failed == looked:
        raise typer.Exit(1)


def _crops(
    recognizer: EmotionRecognizer, sources: Iterable[Path]
) -> Iterator[tuple[str, str, list[NDArray[np.uint8]]]]:
    """Of each picture where it is, what the problem is, and the faces in it."""
    from ferattn.errors import DetectorFailed, InvalidInput
    from ferattn.faces.sources import open_source

    for source in sources:
        try:
            if not (source.is_dir() or source.suffix.lower() == ".zip"):
                yield str(source), "", [cut for _, cut in recognizer.crops(source)]
                continue
            with open_source(source) as files:
                for where, problem, image in read_pictures(files, files.items(), source):
                    found = []
                    try:
                        found = [] if image is None else recognizer.crops(image, channels="rgb")
                    except DetectorFailed as error:
                        problem = str(error)
                    yield where, problem, [cut for _, cut in found]
        except InvalidInput as error:
            yield str(source), str(error), []


def _try_out(recognizer: EmotionRecognizer, look: Callable[..., Any]) -> None:
    """Find now, and not after minutes of work, that a layer has no map or that there is nothing to draw with."""
    import numpy as np

    from ferattn.training.pictures import figure_of

    figure_of(1, 1)
    side = (recognizer.size, recognizer.size)
    next(look([np.full(side if recognizer.channels == 1 else (*side, 3), 127, np.uint8)]))


def _make_folder(out: Path) -> None:
    from ferattn.errors import InvalidOption

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidOption(f"--out {str(out)!r}: cannot be a folder ({error.strerror or error}).") from error


def _free_name(where: str, number: int, drawn: set[str]) -> str:
    """A file's name from the picture's, that no other picture of this call has."""
    stem = PurePosixPath(where.replace("\\", "/")).stem
    name, turn = f"{stem}-{number}", 1
    while name.casefold() in drawn:  # some disks take A.png for a.png
        turn += 1
        name = f"{stem}-{number}-{turn}"
    drawn.add(name.casefold())
    return name


def explanations(
    recognizer: EmotionRecognizer,
    cuts: Sequence[NDArray[np.uint8]],
    *,
    row: int | None,
    method: str,
    layer: str | None,
) -> Iterator[dict[str, Any]]:
    """For each face what is drawn: the crop, its map, and the last gate of each size.

    Args:
        recognizer: Whose model it is about.
        cuts: The crops.
        row: The output that places speak for; None for each face's most probable one.
        method: Of the map.
        layer: Of the map.
    """
    for start in range(0, len(cuts), recognizer.batch_size):
        yield from _of_batch(recognizer, cuts[start : start + recognizer.batch_size], row, method, layer)


def _of_batch(
    recognizer: EmotionRecognizer, cuts: Sequence[NDArray[np.uint8]], row: int | None, method: str, layer: str | None
) -> Iterator[dict[str, Any]]:
    from ferattn.explain import explanation
    from ferattn.predict import stack_crops

    like = next(recognizer.model.parameters())
    images = recognizer.transform.eval().to(like.device)(stack_crops(cuts).to(like.device)).to(like.dtype)
    classes = None if row is None else [row] * len(cuts)
    found = explanation(recognizer.model, images, classes, method=method, layer=layer)
    shares = (found.logits.float() / recognizer.temperature).softmax(1)
    rows, maps = found.classes.tolist(), found.maps.float().cpu()
    # Of the gates of one size the last: what the stage hands on.
    spatial = {gate.spatial.shape[1:]: (path, gate.spatial.float().cpu()) for path, gate in found.gates.items()
               if gate.spatial is not None}  # fmt: skip
    for index, cut in enumerate(cuts):
        yield {
            "title": f"{recognizer.classes[rows[index]]} {shares[index, rows[index]]:.0%}",
            "crop": cut,
            "map": maps[index].numpy(),
            "gates": {path: gate[index].numpy() for path, gate in spatial.values()},
        }


def _draw(path: Path, face: dict[str, Any]) -> None:
    """The crop, the crop under its map, and the gates beside."""
    from ferattn.training.pictures import figure_of, save_figure

    panels = 2 + len(face["gates"])
    figure = figure_of(2.2 * panels, 2.5)
    axes = figure.subplots(1, panels)
    side = face["crop"].shape[0]
    inside = (-0.5, side - 0.5, side - 0.5, -0.5)
    for axis in axes:
        axis.set_axis_off()
    for axis in axes[:2]:
        axis.imshow(face["crop"], cmap="gray", vmin=0, vmax=255, extent=inside)
    axes[0].set_title(face["title"], fontsize=9)
    most = float(face["map"].max())
    axes[1].imshow(face["map"], cmap="inferno", alpha=0.5, vmin=0, vmax=most or 1, extent=inside)
    axes[1].set_title(f"speaks for it, up to {most:.2g}", fontsize=9)
    for axis, (name, gate) in zip(axes[2:], face["gates"].items(), strict=True):
        axis.imshow(gate, cmap="viridis", vmin=0, vmax=1, extent=inside)
        axis.set_title(f"gate {name}", fontsize=7)
    save_figure(figure, path)
