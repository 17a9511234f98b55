"""All images of a dataset decoded once and kept in memory as 8-bit pixels, on the CPU or on the GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ferattn.data.dataset import ArrayReader, Batch, FaceDataset, Records, digests
from ferattn.data.images import reshape_image
from ferattn.data.problems import Problems
from ferattn.errors import InvalidInput

__all__ = ["CachedDataset", "cache"]


class CachedDataset(FaceDataset):
    """Labelled images in memory.

    Args:
        name: What the dataset is called in reports.
        records: One row for each image.
        images: 8-bit pixels, shape (n, c, h, w), on any device.
        content: Checksums of the images as they were stored, shape (n, 16); by default those of the pixels.
        problems: What was skipped so far.

    Raises:
        InvalidInput: If ``images`` are not 8-bit pixels of the right shape.
    """

    def __init__(
        self,
        name: str,
        records: Records,
        images: Tensor,
        content: NDArray[np.uint8] | None = None,
        problems: Problems | None = None,
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8 or len(images) != len(records.ids):
            raise InvalidInput(
                f"images of shape {tuple(images.shape)} and type {images.dtype}: 8-bit pixels (uint8) of "
                f"shape ({len(records.ids)}, c, h, w) are needed."
            )
        super().__init__(name, records, ArrayReader(np.zeros((0, 0, 0), np.uint8)), problems=problems)
        self.images = images
        self._labels = torch.from_numpy(records.labels.copy()).to(images.device)
        self._content = content

    @property
    def labels(self) -> Tensor:
        """The class of each image, on the device of the images. Shape: (n,)."""
        return self._labels

    @property
    def nbytes(self) -> int:
        """Bytes that the pixels take."""
        return self.images.numel()

    def read(self, index: int) -> Tensor:
        """The 8-bit pixels of one image. Shape: (c, h, w)."""
        return self.images[index]

    def read_stored(self, index: int) -> tuple[NDArray[np.uint8], bytes]:
        """The pixels of one image, (h, w) or (h, w, 3), and their bytes."""
        pixels = self.images[index].cpu().numpy()
        return (pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)), pixels.tobytes()

    def batch(self, indices: Tensor) -> Batch:
        """Several images at once: a single gather, where they lie."""
        if self.images.is_cuda and not indices.is_cuda:
            indices = indices.pin_memory()  # else the copy would wait for all that the GPU still has to do
        indices = indices.to(self.images.device, non_blocking=True)
        return Batch(self.images[indices], self._labels[indices], indices)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """What a ``DataLoader`` calls for a batch; see ``make_loader``."""
        return self.batch(torch.as_tensor(indices, dtype=torch.int64))

    def to(self, device: torch.device | str) -> CachedDataset:
        """The same dataset with its pixels and labels on another device."""
        return CachedDataset(self.name, self.records, self.images.to(device), self.digests(), self.problems)

    def digests(self) -> NDArray[np.uint8]:
        """A checksum of each image as it was stored. Shape: (n, 16)."""
        if self._content is None:
            self._content = digests(image.tobytes() for image in self.images.cpu().numpy())
        return self._content

    def _select(self, rows: NDArray[np.int64], records: Records) -> CachedDataset:
        images = self.images[torch.from_numpy(rows).to(self.images.device)]
        return CachedDataset(self.name, records, images, self.digests()[rows], self.problems)


def cache(
    dataset: FaceDataset,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: str = "stretch",
) -> CachedDataset:
    """Decode every image once and keep the 8-bit pixels.

    All of FER2013 takes 35,887 x 48 x 48 bytes, 83 MB.

    Args:
        dataset: The images; one that is in memory already is only reshaped.
        size: Pixels of height and width; None keeps the images' own, which must then agree.
        channels: 1 for grey, 3 for RGB; None takes 1 if the first image is grey, else 3.
        fit: How to change the aspect ratio: ``"stretch"``, ``"crop"`` or ``"pad"``.

    Raises:
        InvalidInput: If an image cannot be read (and the dataset was opened with ``on_error="raise"``), if
            the images have different shapes and no ``size`` is given, or if none is left.
    """
    shape = (size, size) if isinstance(size, int) else size
    n = len(dataset)
    if channels is None:
        channels = _first_channels(dataset)
    # Fail on impossible options before anything is read.
    reshape_image(np.zeros((1, 1), np.uint8), shape, channels, fit)
    planes = channels

    def decode_span(
        span: NDArray[np.int64],
    ) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]] | InvalidInput]:
        return [_decoded(dataset, int(index), shape, planes, fit) for index in span]

    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        spans = np.array_split(np.arange(n), max(1, min(n, 4 * cores)))
        outcomes = [outcome for part in pool.map(decode_span, spans) for outcome in part]
    keep: list[int] = []
    images: list[NDArray[np.uint8]] = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, InvalidInput):
            if dataset.problems.on_error == "raise":
                raise outcome
            dataset.problems.add(dataset.ids[index], str(outcome))
            continue
        if images and outcome[0].shape != images[0].shape:
            raise InvalidInput(
                f"{dataset.ids[index]} has shape {outcome[0].shape} and {dataset.ids[keep[0]]} "
                f"{images[0].shape}; images of different shapes need a size, such as size=48."
            )
        keep.append(index)
        images.append(outcome[0])
    if not images:
        raise InvalidInput(f"{dataset.name}: no readable image among {n}.")
    content = np.concatenate([outcome[1] for outcome in outcomes if not isinstance(outcome, InvalidInput)])
    rows = np.array(keep, dtype=np.int64)
    return CachedDataset(
        dataset.name,
        dataset.records.take(rows),
        torch.from_numpy(np.stack(images)),
        content,
        dataset.problems,
    )


def _first_channels(dataset: FaceDataset) -> int:
    for index in range(len(dataset)):
        try:
            return dataset.read(index).shape[0]
        except InvalidInput:
            if dataset.problems.on_error == "raise":
                raise
    return 1


def _decoded(
    dataset: FaceDataset, index: int, shape: tuple[int, int] | None, channels: int, fit: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | InvalidInput:
    try:
        pixels, stored = dataset.read_stored(index)
    except InvalidInput as error:
        return error
    return reshape_image(pixels, shape, channels, fit), digests([stored])
