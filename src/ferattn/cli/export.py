"""``ferattn export``: weights as one file that runs without ferattn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ferattn.cli.output import require_writable
from ferattn.cli.recognizer import CheckpointOption, ModelOption

__all__ = ["export"]


def export(
    file: Annotated[Path, typer.Argument(help="The file to write: NAME.onnx, or NAME.pt2 for torch.export.")],
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures at a time; any number by default.")] = None,
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operators, for an old runtime.")] = None,
) -> None:
    """Write weights as one file from 8-bit pictures to logits and calibrated probabilities.

    The file's own runtime computes the same pictures as PyTorch before it is written; what they differ by is told.
    """
    from rich.console import Console

    from ferattn.cli.evaluate import open_weights
    from ferattn.errors import InvalidOption
    from ferattn.export import EmotionNetwork, export_onnx, provenance, writer_of

    write = writer_of(file)
    require_writable("FILE", file)
    options: dict[str, int] = {}
    if opset is not None:
        if write is not export_onnx:
            raise InvalidOption(f"--opset is for ONNX; {file.name} is a program of torch.export.")
        options["opset"] = opset
    found = open_weights(model, checkpoint)
    about = {
        "weights": found.name,
        "classes": list(found.classes),
        "temperature": found.temperature,
        "equalised": found.equalised,
        "made_by": provenance(),
    }
    network = EmotionNetwork(found.model, found.transform, temperature=found.temperature or 1.0)
    done = write(network, file, batch_size=batch_size, metadata=about, **options)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{done.path}: {done.format}, {done.bytes / 1e6:.1f} MB, weights {found.name}")
    for what, shapes in (("takes", done.inputs), ("gives", done.outputs)):
        for name, shape in shapes.items():
            kind = "uint8" if what == "takes" else "float32"
            console.print(f"  {what} {name}: {kind}, ({', '.join(map(str, shape))})")
    console.print(f"  classes: {', '.join(found.classes)}")
    console.print(
        f"  checked: outputs differ from PyTorch's by {done.largest_difference:.1e} at most, the largest is "
        f"{done.largest_output:.3g}"
    )
    if found.temperature is None:
        console.print("  the probabilities are not calibrated: these weights come without a temperature")
    if found.equalised is None:
        console.print("  not recorded whether the weights learnt from histogram-equalised pictures")
    elif found.equalised:
        console.print("  the weights learnt from histogram-equalised pictures: equalise yours before")
