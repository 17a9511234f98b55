"""How long an epoch of Luo's CNN takes on this machine: `ferattn train`, and plain loops around the same network.

    python benchmarks/epoch.py fer2013.zip --steps 12 --json benchmarks/results/epoch.json

A plain loop repeats one batch of random numbers: forward pass, backward pass, Adam; freed memory is kept, as in
`ferattn train`. Its convolutions alone are their three products, one after the other, without what lies between them.
`ferattn train` reads and augments FER2013's images, averages its metrics, and looks at 32 validation images; writing
checkpoints is not in its figure. All ways take turns; the rows are seconds for FER2013's 28,709 images: median,
fastest, slowest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import nn

from ferattn import create_model
from ferattn.data import open_dataset
from ferattn.processors import processor_name
from ferattn.training import Machine, Parts, Recipe, fit, load_recipe, make_parts
from ferattn.training.memory import keep_freed_memory
from ferattn.training.parts import first_images

IMAGES = 28_709
BATCH = 64


def build(name: str, norm: bool) -> nn.Module:
    """Luo's CNN, as the text has it or with the batch norms of the recipe."""
    torch.manual_seed(0)
    options = {"norm_layer": "batchnorm2d"} if norm else {}
    return create_model(name, num_classes=7, in_chans=1, **options)


def plain_loop(name: str, steps: int, *, norm: bool, fast: bool) -> float:
    """Seconds a step; fast is bf16 and channels_last, else fp32 and contiguous."""
    model = build(name, norm).to(memory_format=torch.channels_last if fast else torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters(), 0.002)
    images, labels = torch.randn(BATCH, 1, 48, 48), torch.randint(0, 7, (BATCH,))
    seconds = []
    with keep_freed_memory():
        for _ in range(steps + 3):
            start = perf_counter()
            with torch.autocast("cpu", torch.bfloat16) if fast else nullcontext():
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(perf_counter() - start)
    return statistics.median(seconds[3:])


def convolutions(name: str, repeats: int) -> float:
    """Seconds a step in bf16 and channels_last for the network's convolutions, forward and both gradients."""
    model = build(name, False).to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    found: list[tuple[nn.Conv2d, torch.Size, torch.Size]] = []
    hooks = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            hook = layer.register_forward_hook(lambda conv, seen, out: found.append((conv, seen[0].shape, out.shape)))
            hooks.append(hook)
    with torch.no_grad():
        model(torch.randn(BATCH, 1, 48, 48, dtype=torch.bfloat16))
    for hook in hooks:
        hook.remove()
    total = 0.0
    for number, (conv, seen, out) in enumerate(found):
        images, gradient = (
            torch.randn(shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
            for shape in (seen, out)
        )
        rest = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups)
        asked = (number > 0, True, conv.bias is not None)  # no gradient for the pictures
        seconds = []
        for _ in range(repeats + 2):
            start = perf_counter()
            with torch.no_grad():
                conv(images)
                torch.ops.aten.convolution_backward(gradient, images, conv.weight, [len(conv.weight)], *rest, asked)
            seconds.append(perf_counter() - start)
        total += statistics.median(seconds[2:])
    return total


def pipeline(name: str, parts: Parts, recipe: Recipe, precision: str) -> float:
    """Seconds a step of `ferattn train`: its epochs after the first, from their first batch to their last metric."""
    machine = Machine(accelerator="cpu", precision=precision, channels_last=True)
    with tempfile.TemporaryDirectory() as folder:
        run = fit(build(name, True), parts, recipe, Path(folder) / "run", machine=machine)
        rows = (run.path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    column = rows[0].split(",").index("seconds")
    epochs = [float(row.split(",")[column]) for row in rows[2:]]
    return statistics.median(epochs) / (len(parts.train) // recipe.batch_size)


def main() -> None:
    """Measure in turns, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["cnn", "cnn_se"])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    recipe = load_recipe("luo2023", "fer2013").changed({"epochs": 3, "batch_size": BATCH})
    parts = make_parts(open_dataset(asked.data, "fer2013"), recipe, limit=BATCH * asked.steps)
    few = parts.validation.subset(first_images(parts.validation, 32))
    parts = replace(parts, validation=few, test=few)
    found: dict[str, list[float]] = {}
    for _ in range(asked.rounds):
        for name in asked.models:
            ways: dict[str, Callable[[], float]] = {
                "its convolutions alone, bf16, channels last": partial(convolutions, name, asked.steps),
                "plain loop, fp32": partial(plain_loop, name, asked.steps, norm=False, fast=False),
                "plain loop, bf16, channels last": partial(plain_loop, name, asked.steps, norm=False, fast=True),
                "the same with batch norm": partial(plain_loop, name, asked.steps, norm=True, fast=True),
                **{
                    f"ferattn train, {precision}, channels last, batch norm": partial(
                        pipeline, name, parts, recipe, precision
                    )
                    for precision in ("fp32", "bf16")
                },
            }
            for way, measure in ways.items():
                found.setdefault(f"{name}: {way}", []).append(measure() * IMAGES / BATCH)
    for row, samples in found.items():
        print(f"{row:60} {statistics.median(samples):5.0f} s ({min(samples):.0f} to {max(samples):.0f})")
    if asked.json:
        about = {
            "torch": torch.__version__,
            "processor": processor_name(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "batch": BATCH,
            "steps": asked.steps,
        }
        asked.json.write_text(json.dumps(about | {"seconds": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
