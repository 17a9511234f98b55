"""Synthetic faces that can be learnt: each class has its own bright quarter or half, under noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ferattn.data import CachedDataset, Records
from ferattn.training import Parts, Recipe

CLASSES = ("angry", "happy", "sad", "surprise")


def pixels(labels: np.ndarray, side: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 120, (len(labels), side, side))
    half = side // 2
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[row * half : (row + 1) * half, column * half : (column + 1) * half] += 60
    return images.astype(np.uint8)


def faces(n: int, seed: int, *, side: int = 8, subjects: int = 0) -> CachedDataset:
    labels = np.arange(n) % len(CLASSES)
    records = Records(
        ids=tuple(f"{seed}-{row:04d}" for row in range(n)),
        labels=labels,
        classes=CLASSES,
        subjects=tuple(f"P{row % subjects:02d}" for row in range(n)) if subjects else None,
    )
    return CachedDataset("toy", records, torch.from_numpy(pixels(labels, side, seed))[:, None])


def parts(train: int = 64, validation: int = 24, test: int = 40) -> Parts:
    return Parts(faces(train, 1), faces(validation, 2), faces(test, 3), "validation", "test", True)


def recipe(**changes: Any) -> Recipe:
    return Recipe(size=8, batch_size=16, epochs=3, lr=0.01).changed(changes)


def network(seed: int = 0, *, norm: bool = False, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(96, len(CLASSES)),
    )


def folder_of_images(root: Path, per_class: int = 12, side: int = 48, seed: int = 0) -> Path:
    labels = np.repeat(np.arange(len(CLASSES)), per_class)
    for row, image in enumerate(pixels(labels, side, seed)):
        path = root / CLASSES[labels[row]] / f"{row:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root
