"""Images per second into a training step: decoded each epoch, torchvision's reader, and the 8-bit cache.

    python benchmarks/input_pipeline.py ROOT [--json FILE]

ROOT is FER2013 in any form that ``ferattn.data.FER2013`` reads. Rows end in batches of 256 floating-point
images of 48 x 48 on the CPU; passes of all rows are interleaved; medians, slowest and fastest pass
are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from ferattn.data import AUGMENTATIONS, FER2013, BatchTransform, CachedDataset, cache, make_loader
from ferattn.processors import processor_name

BATCH = 256
USAGE = {"train": "Training", "public": "PublicTest", "private": "PrivateTest"}


def images_per_s(batches: Iterable[Any]) -> float:
    """Run through all batches once."""
    start = time.perf_counter()
    count = sum(len(batch[0]) for batch in batches)
    return count / (time.perf_counter() - start)


def write_csv(dataset: CachedDataset, folder: Path) -> Path:
    """Write fer2013.csv where torchvision looks for it."""
    (folder / "fer2013").mkdir()
    path = folder / "fer2013" / "fer2013.csv"
    with path.open("w") as stream:
        stream.write("emotion,pixels,Usage\n")
        for row, image in enumerate(dataset.images[:, 0].numpy()):
            pixels = " ".join(map(str, image.ravel().tolist()))
            stream.write(f"{dataset.records.labels[row]},{pixels},{USAGE[dataset.records.parts[row]]}\n")
    return path


def torchvision_dataset(root: Path, path: Path, transform: Any) -> Any:
    """The FER2013 of torchvision, told the checksum of this file instead of the original one."""
    import hashlib

    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    class Reader(torchvision.datasets.FER2013):
        _RESOURCES = {**torchvision.datasets.FER2013._RESOURCES, "fer": ("fer2013.csv", md5)}  # noqa: RUF012

    return Reader(root, split="train", transform=transform)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--passes", type=int, default=3)
    options = parser.parse_args()
    plain, strong = BatchTransform(AUGMENTATIONS["none"]), BatchTransform(AUGMENTATIONS["strong"])
    # The strong recipe's geometry and erasing, as torchvision does it image by image.
    per_image = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(48, scale=(0.8, 1.0)),
            v2.RandomRotation(15),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomErasing(0.25),
        ]
    )
    to_float = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        whole = FER2013(options.root)
        seconds["list the files"] = time.perf_counter() - start
        start = time.perf_counter()
        cached_whole = cache(whole)
        seconds["decode all files once into the cache"] = time.perf_counter() - start
        path = write_csv(cached_whole, Path(folder))
        start = time.perf_counter()
        from_csv = FER2013(path, "train")
        seconds["read fer2013.csv, ours (all rows)"] = time.perf_counter() - start
        start = time.perf_counter()
        theirs = torchvision_dataset(Path(folder), path, to_float)
        seconds["read fer2013.csv, torchvision (train rows, with its checksum)"] = time.perf_counter() - start
        lazy = whole.part("train")
        train = cache(from_csv)
        same = torch.equal(train.images.sum(), cache(lazy).images.sum())
        if not same:
            sys.exit("the CSV file and the images differ")
        theirs_strong = torchvision_dataset(Path(folder), path, per_image)

    def loop(loader: DataLoader[Any], transform: BatchTransform | None) -> Callable[[], Iterable[Any]]:
        def batches() -> Iterable[Any]:
            for batch in loader:
                yield (batch if transform is None else batch._replace(images=transform(batch[0], batch.indices)))

        return batches

    def ours(dataset: Any, workers: int, transform: BatchTransform, in_worker: bool) -> Callable[[], Iterable[Any]]:
        loader = make_loader(
            dataset, BATCH, shuffle=True, workers=workers, transform=transform if in_worker else None
        )
        return loop(loader, None if in_worker else transform)

    def torchvisions(dataset: Any, workers: int) -> Callable[[], Iterable[Any]]:
        return loop(
            DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0),
            None,
        )

    cases = {
        "files decoded each epoch, no augmentation, 0 workers": ours(lazy, 0, plain, False),
        "files decoded each epoch, no augmentation, 2 workers": ours(lazy, 2, plain, True),
        "torchvision's FER2013, no augmentation, 0 workers": torchvisions(theirs, 0),
        "torchvision's FER2013, no augmentation, 2 workers": torchvisions(theirs, 2),
        "torchvision's FER2013, strong per image, 2 workers": torchvisions(theirs_strong, 2),
        "cache, 8-bit batches, 0 workers": loop(make_loader(train, BATCH, shuffle=True), None),
        "cache, no augmentation, 0 workers": ours(train, 0, plain, False),
        "cache, strong, 0 workers": ours(train, 0, strong, False),
        "cache, strong, 2 workers": ours(train, 2, strong, True),
    }
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(options.passes + 1):  # the first is the warm-up: it starts the workers
        for name, batches in cases.items():
            rate = images_per_s(batches())
            if turn:
                measured[name].append(rate)
    result = {
        "suite": "input_pipeline",
        "unit": "images_per_s",
        "device": f"{os.cpu_count()} x {processor_name()}",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "threads": torch.get_num_threads(),
        "batch": BATCH,
        "passes": options.passes,
        "setup_s": {name: round(value, 2) for name, value in seconds.items()},
        "rows": [
            {"name": name, "median": statistics.median(rates), "min": min(rates), "max": max(rates)}
            for name, rates in measured.items()
        ],
    }
    for name, value in seconds.items():
        print(f"{name:62s} {value:8.1f} s")
    for row in result["rows"]:
        print(f"{row['name']:62s} {row['median']:10,.0f} images/s ({row['min']:,.0f} to {row['max']:,.0f})")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
