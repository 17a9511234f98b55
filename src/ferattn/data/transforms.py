"""From 8-bit pixels to what a model sees, a whole batch at a time, on the device where the batch lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as v2

from ferattn.data.augmentation import AUGMENTATIONS, Augmentation
from ferattn.data.cache import CachedDataset
from ferattn.data.geometry import affine, erase
from ferattn.data.keyed import check_seed, keyed_uniform
from ferattn.data.whitening import ZCA
from ferattn.errors import InvalidInput, InvalidOption, choose

__all__ = ["VIEWS", "BatchTransform", "Standardize", "make_transform", "views"]

# Each choice owns its column of random numbers, so that turning one on leaves the others as they were.
_ZOOM, _SHIFT, _AREA, _RATIO, _CENTRE, _ANGLE, _FLIP, _ERASE, _ERASED, _ERASE_RATIO, _CORNER = (
    slice(0, 2),
    slice(2, 4),
    4,
    5,
    slice(6, 8),
    8,
    9,
    10,
    11,
    12,
    slice(13, 15),
)
_COLUMNS = 15


class Standardize(nn.Module):
    """Subtract a mean and divide by a standard deviation, for each channel.

    Args:
        mean: One number for each channel, on the scale from 0 to 1.
        std: One number for each channel, positive.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise InvalidOption(f"mean={mean!r}, std={std!r}: as many of each, and std positive.")
        self.mean, self.std = tuple(mean), tuple(std)
        # Where the images are: to copy the numbers there for each batch would be to wait for the GPU.
        self.register_buffer("_mean", torch.tensor(self.mean)[:, None, None], persistent=False)
        self.register_buffer("_std", torch.tensor(self.std)[:, None, None], persistent=False)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"mean={self.mean}, std={self.std}"

    def forward(self, images: Tensor) -> Tensor:
        """Standardize. Shape: (b, c, h, w)."""
        if images.shape[-3] != len(self.mean):
            raise InvalidInput(f"images of {images.shape[-3]} channels; there are {len(self.mean)} means.")
        return (images - self._mean.to(images)).div_(self._std.to(images))

    def undo(self, images: Tensor) -> Tensor:
        """From standardized images to those on the scale from 0 to 1. Shape: (b, c, h, w)."""
        return (images * self._std.to(images)).add_(self._mean.to(images))


class BatchTransform(nn.Module):
    """8-bit images in, floating-point images out; augmented in training mode, only scaled in evaluation mode.

    Every image of a batch is changed by its own random numbers, which depend on the seed, the epoch and the
    image
    alone: see ``keyed_uniform``. Mixup and CutMix need the labels too and are in ``mix``.

    Args:
        augmentation: What to do in training.
        normalize: What to do after scaling to 0..1, in training and evaluation: ``Standardize``, ``ZCA`` or
            nothing.
        size: Height and width of the result; None keeps the images' own.
        seed: Of the random numbers.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        normalize: nn.Module | None = None,
        *,
        size: int | tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.augmentation = augmentation
        self.normalize = nn.Identity() if normalize is None else normalize
        self.size = (size, size) if isinstance(size, int) else size
        self.seed = check_seed(seed)

    def forward(self, images: Tensor, indices: Tensor | None = None, epoch: int = 0) -> Tensor:
        """Transform a batch.

        Args:
            images: 8-bit pixels, shape (b, c, h, w).
            indices: Positions of the images in their dataset, shape (b,); needed in training mode.
            epoch: Which epoch this is; changes the random numbers.

        Shape: (b, c, h, w), with the height and width of ``size`` where one was given

        Raises:
            InvalidInput: If ``images`` are not a batch of 8-bit pixels.
            InvalidOption: If ``indices`` are missing in training mode, or as many as the images they are not.
        """
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise InvalidInput(
                f"images of shape {tuple(images.shape)}, {images.dtype}: (b, c, h, w) of uint8 is needed."
            )
        scaled: Tensor = v2.to_dtype(images, torch.float32, scale=True)
        if not self.training:
            result: Tensor = self.normalize(self._resize(scaled))
            return result
        if indices is None or indices.shape != images.shape[:1]:
            shape = None if indices is None else tuple(indices.shape)
            raise InvalidOption(f"indices of shape {shape}: one for each of {len(images)} images, in training mode.")
        u = keyed_uniform(self.seed, epoch, indices.to(images.device), _COLUMNS)
        recipe = self.augmentation
        mirror = u[:, _FLIP] < recipe.flip if recipe.flip else None
        if recipe.moves:
            moved = _move(scaled, recipe, u, mirror, self.size)
        else:
            moved = self._resize(scaled)
            if mirror is not None:
                moved = torch.where(mirror[:, None, None, None], v2.horizontal_flip(moved), moved)
        moved = self.normalize(moved)
        return _erase(moved, recipe, u) if recipe.erase else moved

    def _resize(self, images: Tensor) -> Tensor:
        if self.size is None or tuple(images.shape[-2:]) == self.size:
            return images
        resized: Tensor = v2.resize(images, list(self.size), antialias=True)
        return resized


def _move(
    images: Tensor, recipe: Augmentation, u: Tensor, mirror: Tensor | None, size: tuple[int, int] | None
) -> Tensor:
    scale = 1 + recipe.zoom * (2 * u[:, _ZOOM] - 1)
    centre = 2 * recipe.shift * (2 * u[:, _SHIFT] - 1)  # the image is 2 wide
    if recipe.crops:
        low, high = recipe.crop_area
        area = low + (high - low) * u[:, _AREA]
        ratio = _log_uniform(recipe.crop_ratio, u[:, _RATIO])
        window = torch.stack([(area * ratio.exp()).sqrt(), (area / ratio.exp()).sqrt()], 1).clamp(max=1)
        centre = centre + (1 - window) * (2 * u[:, _CENTRE] - 1)
        scale = scale * window
    radians = math.radians(recipe.rotate_degrees) * (2 * u[:, _ANGLE] - 1) if recipe.rotate_degrees else None
    return affine(images, scale, centre, radians, mirror, size)


def _erase(images: Tensor, recipe: Augmentation, u: Tensor) -> Tensor:
    low, high = recipe.erase_area
    area = torch.where(u[:, _ERASE] < recipe.erase, low + (high - low) * u[:, _ERASED], 0.0)
    return erase(images, area, _log_uniform(recipe.erase_ratio, u[:, _ERASE_RATIO]), u[:, _CORNER])


def _log_uniform(bounds: tuple[float, float], u: Tensor) -> Tensor:
    low, high = math.log(bounds[0]), math.log(bounds[1])
    return low + (high - low) * u


def make_transform(
    recipe: str | Augmentation,
    train: CachedDataset,
    *,
    standardize: bool = False,
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> BatchTransform:
    """The transform of a recipe, its statistics taken from the training images.

    Args:
        recipe: An entry of ``AUGMENTATIONS``, or one of your own.
        train: The training images: for ZCA and for the mean and standard deviation.
        standardize: Whether to subtract the mean and divide by the standard deviation of the training images;
            the papers only divide by 255.
        size: Height and width of the result; None keeps the images' own.
        seed: Of the random numbers.

    Raises:
        UnknownChoice: If there is no such recipe.
        InvalidOption: If whitening is asked for together with standardizing or with a ``size``.
    """
    augmentation = choose(AUGMENTATIONS, recipe, "augmentation") if isinstance(recipe, str) else recipe
    normalize: nn.Module | None = None
    if augmentation.zca_epsilon is not None:
        if standardize or size is not None:
            raise InvalidOption(
                "ZCA whitening replaces standardize= and works at the images' own size: leave both out."
            )
        channels, height, width = train.images.shape[1:]
        normalize = ZCA((channels, height, width), augmentation.zca_epsilon).to(train.images.device)
        normalize.fit(train.images)
    elif standardize:
        pixels = train.images.transpose(0, 1).flatten(1)
        mean = [float(plane.sum(dtype=torch.int64)) / plane.numel() / 255 for plane in pixels]
        std = [_std(plane, 255 * average) for plane, average in zip(pixels, mean, strict=True)]
        normalize = Standardize(tuple(mean), tuple(std))
    return BatchTransform(augmentation, normalize, size=size, seed=seed)


def _std(plane: Tensor, mean: float) -> float:
    counts = torch.bincount(plane.long(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64, device=plane.device)
    variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
    return max(math.sqrt(variance), 1e-6) / 255


VIEWS = {"none": 1, "flip": 2, "ten-crop": 10}
"""Test-time views by name, and how many there are."""


def views(images: Tensor, kind: str, crop: int | None = None) -> Tensor:
    """The views of each image over which a model's outputs are averaged at test time.

    Args:
        images: Shape (b, c, h, w), of any type.
        kind: ``"none"``, ``"flip"`` (the image and its mirror image), or ``"ten-crop"`` (corners, centre, and
            all five mirrored).
        crop: Side of the ten crops in pixels; by default 11/12 of the shorter side (44 of 48). They are
            brought back to the images' size, so that a model sees what it was trained on.

    Shape: (b, views, c, h, w)

    Raises:
        UnknownChoice: If there is no such kind.
        InvalidOption: If ``crop`` does not fit into the images.
    """
    choose(VIEWS, kind, "test-time views")
    if kind != "ten-crop":
        if crop is not None:
            raise InvalidOption(f"crop={crop!r} is for ten-crop; the views {kind!r} have none.")
        return images[:, None] if kind == "none" else torch.stack([images, v2.horizontal_flip(images)], 1)
    h, w = images.shape[-2:]
    side = round(min(h, w) * 11 / 12) if crop is None else crop
    if not 1 <= side <= min(h, w):
        raise InvalidOption(f"crop={crop!r}: from 1 to {min(h, w)}, the shorter side of the images.")
    crops = v2.ten_crop(images, [side, side])
    return torch.stack([v2.resize(part, [h, w], antialias=True) for part in crops], 1)
