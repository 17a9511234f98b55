"""What is in a dataset: images by class and split, brightness and contrast, and a sheet of samples."""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ferattn.data.cache import CachedDataset, cache
from ferattn.data.contrast import is_equalised
from ferattn.data.dataset import FaceDataset
from ferattn.errors import InvalidInput, InvalidOption
from ferattn.files import write_atomically

__all__ = ["contact_sheet", "mean_and_std", "summarize"]


def summarize(dataset: FaceDataset) -> dict[str, Any]:
    """Counts by class and split, subjects, sizes, mean and standard deviation of all pixels, as plain data.

    ``equalised_share`` is the share of pictures that are histogram-equalised, see ``is_equalised``.

    Reads every image. Where the dataset has a train split, the mean and standard deviation are also given for
    it alone, since that is what a model may know.

    Raises:
        InvalidInput: If an image cannot be read (and the dataset was opened with ``on_error="raise"``).
    """
    labels = dataset.records.labels.tolist()
    parts = dataset.parts or ("all",) * len(dataset)
    table = Counter(zip(parts, labels, strict=True))
    statistics: dict[str, list[float]] = {}
    sizes: Counter[str] = Counter()
    equalised = 0
    for index in range(len(dataset)):
        try:
            image = dataset.read(index)
        except InvalidInput as error:
            if dataset.problems.on_error == "raise":
                raise
            dataset.problems.add(dataset.ids[index], str(error))
            table[parts[index], labels[index]] -= 1
            continue
        sizes["x".join(map(str, (image.shape[2], image.shape[1], image.shape[0])))] += 1
        equalised += is_equalised(image)
        moments = _moments(image)
        for group in {"all", parts[index]}:
            total = statistics.setdefault(group, [0.0, 0.0, 0.0])
            for place, value in enumerate(moments):
                total[place] += value
    return {
        "dataset": dataset.name,
        "images": sum(sizes.values()),
        "classes": list(dataset.classes),
        "counts": {
            part: {name: table[part, label] for label, name in enumerate(dataset.classes)}
            | ({"unlabelled": table[part, -1]} if table[part, -1] else {})
            for part in dict.fromkeys(parts)
        },
        "subjects": None if dataset.subjects is None else len(set(dataset.subjects)),
        "sizes": dict(sizes.most_common()),
        "statistics": {group: _mean_std(*statistics[group]) for group in sorted(statistics)},
        "equalised_share": equalised / max(1, sum(sizes.values())),
        "skipped": [list(entry) for entry in dataset.skipped],
    }


def _moments(image: torch.Tensor) -> tuple[float, float, float]:
    values = image.numpy().astype(np.int64)
    return float(values.size), float(values.sum()), float((values * values).sum())


def _mean_std(count: float, total: float, squares: float) -> dict[str, float]:
    mean = total / count
    return {"mean": mean / 255, "std": math.sqrt(max(squares / count - mean**2, 0.0)) / 255}


def mean_and_std(dataset: CachedDataset) -> tuple[float, float]:
    """Mean and standard deviation over all pixels and channels, on the scale from 0 to 1.

    Raises:
        InvalidInput: If the dataset is empty.
    """
    if not len(dataset):
        raise InvalidInput(f"{dataset.name} is empty.")
    counts = torch.bincount(dataset.images.flatten().long(), minlength=256).double().cpu()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = float((counts * levels).sum() / counts.sum())
    return mean, math.sqrt(float((counts * (levels - mean) ** 2).sum() / counts.sum()))


def contact_sheet(
    dataset: FaceDataset, path: str | os.PathLike[str], *, columns: int = 12, side: int = 64, seed: int = 0
) -> None:
    """Write a PNG with one row of samples for each class.

    Args:
        dataset: The images.
        path: Where to write; the file appears complete or not at all.
        columns: Samples of each class.
        side: Height and width of each sample in pixels.
        seed: Of the choice.

    Raises:
        InvalidOption: If a number is not positive or the path cannot be written.
    """
    from PIL import Image, ImageDraw

    if columns < 1 or side < 8:
        raise InvalidOption(f"columns={columns!r}, side={side!r}: at least 1 and 8.")
    generator = np.random.default_rng(seed)
    band = 14  # pixels for a row's title
    sheet = Image.new("RGB", (columns * side, len(dataset.classes) * (side + band)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(dataset.classes):
        members = np.flatnonzero(dataset.records.labels == row)
        top = row * (side + band)
        draw.text((2, top + 1), f"{name} ({len(members)})", fill="black")
        chosen = np.sort(generator.permutation(members)[:columns])
        if not len(chosen):
            continue
        try:
            samples = cache(dataset.subset(chosen), size=side, channels=3, fit="pad")
        except InvalidInput:
            if dataset.problems.on_error == "raise":
                raise
            continue  # no readable sample in this row; each is in dataset.skipped
        for place, image in enumerate(samples.images):
            sheet.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), (place * side, top + band))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_atomically(Path(path), buffer.getvalue())
