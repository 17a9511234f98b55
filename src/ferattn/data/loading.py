"""Batches in a seeded order, for one process or for several, through an ordinary ``DataLoader``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ferattn.data.cache import CachedDataset
from ferattn.data.dataset import Batch, FaceDataset, Item
from ferattn.data.keyed import check_seed
from ferattn.data.transforms import BatchTransform
from ferattn.errors import InvalidInput, InvalidOption

__all__ = ["SeededSampler", "make_loader"]


class SeededSampler(Sampler[int]):
    """Positions in an order that depends on seed and epoch only, divided among the processes of a run.

    Shuffled (training): every process gets equally many; the few images left over differ from epoch to epoch.
    In order (evaluation): every image goes to exactly one process, none twice.

    Args:
        n: Number of images.
        shuffle: Whether to shuffle.
        seed: Of the order.
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(self, n: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world:
            raise InvalidOption(f"rank={rank!r}, world={world!r}: the rank runs from 0 to world - 1.")
        self.n, self.shuffle, self.seed, self.rank, self.world = n, shuffle, check_seed(seed), rank, world
        # Shared memory: workers that live on from epoch to epoch must see the change.
        self.shared_epoch = torch.zeros((), dtype=torch.int64)
        self.shared_epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch that was set last."""
        return int(self.shared_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, before iterating; Lightning does so by itself."""
        self.shared_epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.n // self.world if self.shuffle else len(range(self.rank, self.n, self.world))

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.rank, self.n, self.world))
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        return iter(order[self.rank :: self.world][: len(self)].tolist())


class _Collate:
    """Makes a ``Batch`` of what the dataset gives, and transforms it in the worker where one is asked for."""

    def __init__(self, transform: BatchTransform | None, epoch: Tensor) -> None:
        self.transform, self.epoch = transform, epoch

    def __call__(self, items: Any) -> Batch:
        batch = items if isinstance(items, Batch) else _stack(items)
        if self.transform is None:
            return batch
        return batch._replace(images=self.transform(batch.images, batch.indices, int(self.epoch)))


def _stack(items: Sequence[Item]) -> Batch:
    shapes = {tuple(item.image.shape) for item in items}
    if len(shapes) > 1:
        raise InvalidInput(f"images of different shapes in one batch ({sorted(shapes)}): cache(dataset, size=...).")
    return Batch(
        torch.stack([item.image for item in items]),
        torch.tensor([item.label for item in items], dtype=torch.int64),
        torch.tensor([item.position for item in items], dtype=torch.int64),
    )


def make_loader(
    dataset: FaceDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    workers: int = 0,
    transform: BatchTransform | None = None,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Any]:
    """A ``DataLoader`` of ``Batch``: images, labels and positions.

    Call ``loader.sampler.set_epoch(epoch)`` before each epoch (Lightning does). For a ``CachedDataset`` a
    batch is one gather, so ``workers=0`` is the fastest unless a ``transform`` is to run beside the training
    step.

    Args:
        dataset: Where the images come from; a ``CachedDataset`` unless they are too many for the memory.
        batch_size: Images in a batch.
        shuffle: Whether to shuffle, by seed and epoch.
        seed: Of the order.
        drop_last: Whether to leave out a last batch that is not full.
        workers: Processes that prepare batches beside the main one.
        transform: Applied to every batch in the worker; leave it out to apply it later, on the GPU.
        rank: Number of this process of a distributed run.
        world: Number of processes of a distributed run.

    Raises:
        InvalidOption: If a number is out of range, nothing would be left, or workers are asked for images on
            a GPU.
    """
    if batch_size < 1 or workers < 0:
        raise InvalidOption(f"batch_size={batch_size!r}, workers={workers!r}: at least 1 and 0.")
    if workers and isinstance(dataset, CachedDataset) and dataset.images.is_cuda:
        raise InvalidOption(f"workers={workers}: the images are on {dataset.images.device} already; use workers=0.")
    sampler = SeededSampler(len(dataset), shuffle=shuffle, seed=seed, rank=rank, world=world)
    if drop_last and len(sampler) < batch_size:
        raise InvalidOption(
            f"batch_size={batch_size}: {dataset.name} gives {len(sampler)} images a process, so that with "
            "drop_last no batch would be left."
        )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_Collate(transform, sampler.shared_epoch),
    )
