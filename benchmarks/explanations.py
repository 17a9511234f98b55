"""Do class activation maps point at what the network uses? Hide what they point at, and see.

    python benchmarks/explanations.py FER2013.zip --json benchmarks/results/explanations.json

A share of each picture of the public test is blurred away: where its map is highest, where it is lowest, where the
map of another picture is highest, and at random places of the same coarseness. With --json, docs/explain.md says the
same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sections import write_section
from torch import Tensor
from torchvision.transforms import v2

from ferattn.bench.record import environment
from ferattn.data import FER2013, cache
from ferattn.explain import METHODS, class_activation_maps
from ferattn.predict import Pretrained, open_pretrained

BLUR = 6.0  # standard deviation in pixels; a mouth is about 15 pixels wide
NAMES = {"grad-cam": "Grad-CAM", "hires-cam": "HiResCAM"}


def probabilities(found: Pretrained, images: Tensor) -> Tensor:
    """Of each class, (n, k)."""
    with torch.inference_mode():
        return torch.cat([found.model(found.transform(part)).softmax(1) for part in images.split(100)])


def maps_of(found: Pretrained, images: Tensor, method: str) -> Tensor:
    """A map of each picture, for the class that the network takes it for."""
    parts = [class_activation_maps(found.model, found.transform(part), method=method) for part in images.split(100)]
    return torch.cat(parts)


def hide(images: Tensor, blurred: Tensor, scores: Tensor, share: float) -> Tensor:
    """The pictures with this share of pixels, those of the highest scores, taken from blurred ones."""
    flat = scores.flatten(1)
    order = flat.argsort(dim=1, descending=True)
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order[:, : round(share * flat.shape[1])], True)
    return torch.where(mask.view(len(images), 1, *images.shape[2:]), blurred, images)


def measure(found: Pretrained, images: Tensor, labels: Tensor, share: float) -> list[dict[str, Any]]:
    """A row for each way of hiding."""
    blurred = v2.functional.gaussian_blur(images, [6 * int(BLUR) + 1] * 2, [BLUR, BLUR])
    before = probabilities(found, images)
    answers = before.argmax(1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(images), 1, 6, 6, generator=generator)
    noise = torch.nn.functional.interpolate(noise, images.shape[2:], mode="bilinear")[:, 0]
    ways: dict[str, Callable[[], Tensor]] = {"random places": lambda: noise}
    for method in METHODS:
        maps = maps_of(found, images, method)
        # Ties, such as zeros, in a random order rather than from the picture's top downwards.
        maps = maps + 1e-9 * torch.rand(maps.shape, generator=generator)
        ways[f"{NAMES[method]}, highest"] = lambda maps=maps: maps
        ways[f"{NAMES[method]}, lowest"] = lambda maps=maps: -maps
        ways[f"{NAMES[method]} of another picture, highest"] = lambda maps=maps: maps.roll(1, 0)
    rows = [row("nothing", before, before, answers, labels)]
    return rows + [
        row(name, probabilities(found, hide(images, blurred, way(), share)), before, answers, labels)
        for name, way in ways.items()
    ]


def row(name: str, after: Tensor, before: Tensor, answers: Tensor, labels: Tensor) -> dict[str, Any]:
    """What is left of the accuracy, of the answers and of their probability."""
    own = answers[:, None]
    return {
        "hidden": name,
        "accuracy": float((after.argmax(1) == labels).double().mean()),
        "same_answer": float((after.argmax(1) == answers).double().mean()),
        "probability": float(after.gather(1, own).mean()),
        "probability_before": float(before.gather(1, own).mean()),
    }


def table(report: dict[str, Any]) -> str:
    """As docs/explain.md shows it."""
    lines = [
        f"| {report['share']:.0%} of the picture blurred away | accuracy, % | same answer, % | its probability |",
        "|---|--:|--:|--:|",
    ]
    lines += [
        f"| {r['hidden']} | {100 * r['accuracy']:.1f} | {100 * r['same_answer']:.1f} | {r['probability']:.2f} |"
        for r in report["rows"]
    ]
    lines += [
        "",
        f"{report['images']:,} pictures of the public test, weights `{report['weights']}`; what is hidden comes from "
        f"a copy blurred by {report['blur_pixels']:g} pixels:",
        "`python benchmarks/explanations.py fer2013.zip --json benchmarks/results/explanations.json`.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="FER2013, its zip or CSV")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.2, help="of each picture that is hidden")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    found = open_pretrained("cnn_se")
    stored = cache(FER2013(words.data, "public"))
    # The pictures may come class by class: take some of everywhere.
    taken = torch.linspace(0, len(stored) - 1, min(words.images, len(stored))).long()
    report = {
        "weights": found.name,
        "images": len(taken),
        "share": words.share,
        "blur_pixels": BLUR,
        "environment": environment(torch.device("cpu")),
        "rows": measure(found, stored.images[taken], stored.labels[taken], words.share),
    }
    print(table(report))
    if words.json:
        words.json.write_text(json.dumps(report, indent=1) + "\n")
        write_section("explain.md", "explanations", table(report))


if __name__ == "__main__":
    main()
