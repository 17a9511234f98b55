"""In how many FER2013 pictures is a face found, by detector and by how small pictures are prepared?

Usage: python docs/faces_fer2013.py FER2013.zip YUNET.onnx [NUMBER OF PICTURES]

Also run over as many square pieces of pictures without a face (textures, still lifes and a cat of
scikit-image, shrunk to 48x48), because a detector that finds a face everywhere would score best otherwise.
"""

from __future__ import annotations

import random
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data

from ferattn.faces import make_detector, read_picture
from ferattn.faces.framing import resize

WITHOUT_FACE = (
    *("brick", "grass", "gravel", "coffee", "chelsea", "rocket"),
    *("coins", "page", "text", "clock", "moon", "hubble_deep_field"),
)


def pieces(number: int) -> Iterator[np.ndarray]:
    sources = [read_picture(Image.fromarray(getattr(data, name)())) for name in WITHOUT_FACE]
    generator = np.random.default_rng(0)
    for index in range(number):
        source = sources[index % len(sources)]
        side = generator.integers(48, min(source.shape[:2]))
        top, left = (generator.integers(0, length - side + 1) for length in source.shape[:2])
        gray = source[top : top + side, left : left + side].mean(axis=2, keepdims=True)
        yield resize(gray.repeat(3, axis=2).round().astype(np.uint8), 48, 48)


def main() -> None:
    archive, weights = zipfile.ZipFile(sys.argv[1]), sys.argv[2]
    number = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    torch.set_num_threads(1)
    names = sorted(name for name in archive.namelist() if name.endswith((".jpg", ".png")))
    sample = random.Random(0).sample(names, number)
    faces = [read_picture(archive.read(name)) for name in sample]
    others = list(pieces(number))
    rows: list[tuple[str, dict[str, Any]]] = [
        ("yunet", {"min_side": 1}),
        *(("yunet", {"min_side": side}) for side in (64, 80, 112, 144, 192, 288)),
        *(("yunet", {"border": border}) for border in (0.1, 0.25, 0.5)),
        *(("yunet", {"min_score": score}) for score in (0.5, 0.7, 0.8, 0.9)),
        ("yunet", {}),
        *(("cascade", {"min_side": 1, "border": border}) for border in (0.0, 0.25)),
        *(("cascade", {"border": border}) for border in (0.0, 0.5)),
        ("cascade", {"min_side": 128}),
        ("cascade", {"min_neighbors": 2}),
        ("cascade", {}),
    ]
    print("| detector | options | found | found where there is none | several |")
    print("|---|---|---|---|---|")
    for name, options in rows:
        own = {"weights": weights} if name == "yunet" else {}
        detector = make_detector(name, **own, **options)
        found = np.array([len(detector(picture)) for picture in faces])
        wrong = np.array([len(detector(picture)) for picture in others])
        shown = ", ".join(f"{key}={value}" for key, value in options.items()) or "default"
        print(
            f"| {detector.name} | {shown} | {(found > 0).mean():.1%} | {(wrong > 0).mean():.1%} "
            f"| {(found > 1).mean():.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
