"""``ferattn explain``: where in a face a network looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ferattn.predict import EmotionRecognizer

__all__ = ["explain"]


def explain(
    sources: Annotated[
        list[Path], typer.Argument(metavar="PICTURES", help="Pictures, folders of pictures, zips of pictures.")
    ],
    out: Annotated[Path, typer.Option(help="The folder that gets a PNG for each face.")],
    model: Annotated[str | None, typer.Option(help="Whose published weights; by default cnn_se's.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The folder of a run, instead.")] = None,
    detector: Annotated[
        str, typer.Option(help="auto, yunet, yolo5face, cascade, or none: the whole picture is the face.")
    ] = "auto",
    weights: Annotated[Path | None, typer.Option(help="ONNX file of yunet or yolo5face.")] = None,
    emotion: Annotated[
        str | None, typer.Option(help="What the places speak for; by default the most probable emotion.")
    ] = None,
    method: Annotated[str, typer.Option(help="Of the map: hires-cam or grad-cam.")] = "hires-cam",
    layer: Annotated[
        str | None, typer.Option(help="The module whose map is taken; by default the last feature map.")
    ] = None,
) -> None:
    """Draw each face with the places that speak for an emotion, and with the spatial gates of CBAM.

    A map shows what moves the network's answer, not what a person feels, nor whether the answer is right.
    """
    from rich.console import Console

    from ferattn.cli.predict import open_recognizer
    from ferattn.errors import InvalidInput, InvalidOption, choose
    from ferattn.explain import METHODS

    choose(METHODS, method, "method")
    if weights is not None and detector == "auto":
        raise InvalidOption("--weights are for one detector: name it, such as --detector yunet.")
    options = {} if weights is None else {"weights": weights}
    recognizer, name, _ = open_recognizer(model, checkpoint, None, detector=(detector, options))
    row = (
        None if emotion is None else choose({one: i for i, one in enumerate(recognizer.classes)}, emotion, "emotion")
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidOption(
            f"--out {str(out)!r}: no folder can be made there ({error.strerror or error})."
        ) from error
    console = Console(soft_wrap=True, highlight=False, markup=False)
    drawn: set[str] = set()
    looked = failed = 0
    for where, picture in _pictures(sources):
        looked += 1
        try:
            found = recognizer.crops(picture())
        except InvalidInput as error:
            console.print(f"{where}  {error}")
            failed += 1
            continue
        if not found:
            console.print(f"{where}  no face")
            continue
        for number, face in enumerate(_explanations(recognizer, [cut for _, cut in found], row, method, layer), 1):
            path = out / f"{_free_name(where, number, drawn)}.png"
            _draw(path, face)
            console.print(f"{where}  {face['title']}  {path}")
    if not looked:
        raise InvalidInput(f"no pictures in {', '.join(map(str, sources))}.")
    console.print(f"pictures: {looked}, not readable: {failed}, drawn: {len(drawn)}; weights {name}, {method}")
    if failed == looked:
        raise typer.Exit(1)


def _pictures(sources: Iterable[Path]) -> Iterator[tuple[str, Callable[[], Path | bytes]]]:
    """Where each picture is, and what reads it."""
    from ferattn.faces.sources import open_source

    for source in sources:
        if not (source.is_dir() or source.suffix.lower() == ".zip"):
            yield str(source), partial(_known, source)
            continue
        with open_source(source) as files:
            for item in files.items():
                if item.problem != "not a picture":
                    yield f"{source}/{item.name}", partial(files.read, item.name)


def _known(path: Path) -> Path:
    return path


def _free_name(where: str, number: int, drawn: set[str]) -> str:
    """A file's name from the picture's, that no other picture of this call has."""
    stem = PurePosixPath(where.replace("\\", "/")).stem
    name, turn = f"{stem}-{number}", 1
    while name in drawn:
        turn += 1
        name = f"{stem}-{number}-{turn}"
    drawn.add(name)
    return name


def _explanations(
    recognizer: EmotionRecognizer, cuts: list[Any], row: int | None, method: str, layer: str | None
) -> Iterator[dict[str, Any]]:
    """For each face what is drawn: the crop, its map, and its gates by the size of their maps."""
    import torch

    from ferattn.errors import NoSite
    from ferattn.explain import attention_gates, class_activation_maps
    from ferattn.predict import stack_crops

    device = next(recognizer.model.parameters()).device
    images = recognizer.transform.eval().to(device)(stack_crops(cuts).to(device))
    with torch.inference_mode():
        shares = (recognizer.model.eval()(images) / recognizer.temperature).softmax(1)
    rows = shares.argmax(1).tolist() if row is None else [row] * len(cuts)
    maps = class_activation_maps(recognizer.model, images, rows, method=method, layer=layer).cpu()
    try:
        gates = attention_gates(recognizer.model, images)
    except NoSite:
        gates = {}
    # Of the gates of one size the last: what the stage hands on.
    spatial = {gate.spatial.shape[1:]: (path, gate.spatial.cpu()) for path, gate in gates.items()
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
    axes[1].imshow(face["map"], cmap="inferno", alpha=0.5, extent=inside)
    axes[1].set_title("speaks for it", fontsize=9)
    for axis, (name, gate) in zip(axes[2:], face["gates"].items(), strict=True):
        axis.imshow(gate, cmap="viridis", vmin=0, vmax=1, extent=inside)
        axis.set_title(f"gate {name}", fontsize=7)
    save_figure(figure, path)
