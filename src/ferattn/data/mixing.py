"""Mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899) on a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ferattn.data.augmentation import AUGMENTATIONS, Augmentation
from ferattn.data.keyed import check_seed, keyed_uniform
from ferattn.errors import InvalidInput, InvalidOption, MissingDependency, choose

__all__ = ["Mixer", "make_mixer"]

# Keeps these numbers apart from those of BatchTransform under the same seed.
_STREAM = 0x6D69786572


class Mixer:
    """Mix each image with another of the batch, and their labels in the same proportion.

    Where both are on, each image gets one or the other with equal probability. The share of each image
    depends on the seed, the epoch and the image; its partner also on who else is in the batch.

    Args:
        classes: Number of classes.
        mixup: Alpha of the Beta(alpha, alpha) distribution of mixup's share; 0 turns it off.
        cutmix: The same for CutMix.
        seed: Of the random numbers.

    Raises:
        InvalidOption: If both are off, or a number is out of range.
    """

    def __init__(self, classes: int, *, mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0) -> None:
        if min(mixup, cutmix) < 0 or max(mixup, cutmix) <= 0:
            raise InvalidOption(f"mixup={mixup!r}, cutmix={cutmix!r}: positive for those that are on, at least one.")
        if classes < 2:
            raise InvalidOption(f"classes={classes!r}: at least two.")
        self.classes, self.mixup, self.cutmix, self.seed = classes, mixup, cutmix, check_seed(seed)
        self._tables = [_beta_quantiles(alpha) if alpha else None for alpha in (mixup, cutmix)]

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: Shape (b, c, h, w), floating point.
            labels: Shape (b,), whole numbers below ``classes``.
            indices: Positions of the images in their dataset, shape (b,).
            epoch: Which epoch this is.

        Returns:
            Mixed images, shape (b, c, h, w), and the share of each class, shape (b, classes), rows adding up
            to 1.

        Raises:
            InvalidInput: If the shapes do not agree or the images are not floating point.
        """
        if (
            images.ndim != 4
            or not images.is_floating_point()
            or not images.shape[:1] == labels.shape == indices.shape
        ):
            raise InvalidInput(
                f"images {tuple(images.shape)} {images.dtype}, labels {tuple(labels.shape)}, indices "
                f"{tuple(indices.shape)}: (b, c, h, w) floating point, (b,) and (b,) are needed."
            )
        u = keyed_uniform(self.seed ^ _STREAM, epoch, indices.to(images.device), 6)
        # One random ring through the batch: nobody is mixed with himself unless he is alone.
        ring = u[:, 0].argsort(stable=True)
        partner = torch.empty_like(ring)
        partner[ring] = ring.roll(-1)
        use_cutmix = self._choose_cutmix(u[:, 1])
        keep = torch.where(use_cutmix, self._share(1, u[:, 2]), self._share(0, u[:, 2]))  # share of the image's own
        box = _boxes(images.shape[-2], images.shape[-1], 1 - keep, u[:, 3:5])
        keep = torch.where(use_cutmix, 1 - box.float().mean((1, 2)), keep)
        weight = torch.where(use_cutmix[:, None, None], 1 - box.float(), keep[:, None, None])[:, None].to(
            images.dtype
        )
        mixed = images * weight + images[partner] * (1 - weight)
        one_hot = F.one_hot(labels.long(), self.classes).to(keep.dtype)
        targets = one_hot * keep[:, None] + one_hot[partner] * (1 - keep[:, None])
        return mixed, targets

    def _choose_cutmix(self, u: Tensor) -> Tensor:
        probability = 0.5 if self.mixup and self.cutmix else float(bool(self.cutmix))
        return u < probability

    def _share(self, which: int, u: Tensor) -> Tensor:
        table = self._tables[which]
        if table is None:
            return torch.ones_like(u)
        table = self._tables[which] = table.to(u.device)
        position = u * (len(table) - 1)
        low = position.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[low], table[low + 1], position - low)


def make_mixer(recipe: str | Augmentation, classes: int, *, seed: int = 0) -> Mixer | None:
    """The mixer of a recipe, or None where it mixes nothing.

    Args:
        recipe: An entry of ``AUGMENTATIONS``, or one of your own.
        classes: Number of classes.
        seed: Of the random numbers.

    Raises:
        UnknownChoice: If there is no such recipe.
    """
    augmentation = choose(AUGMENTATIONS, recipe, "augmentation") if isinstance(recipe, str) else recipe
    if not augmentation.mixup and not augmentation.cutmix:
        return None
    return Mixer(classes, mixup=augmentation.mixup, cutmix=augmentation.cutmix, seed=seed)


def _boxes(height: int, width: int, area: Tensor, centre: Tensor) -> Tensor:
    """CutMix's rectangles: sides sqrt(area) of the image's, centre anywhere, cut at the border. (b, h, w)."""
    side = area.sqrt()
    half = torch.stack([side * width, side * height], 1) / 2
    middle = torch.stack([centre[:, 0] * width, centre[:, 1] * height], 1)
    low, high = (middle - half).round(), (middle + half).round()
    x = torch.arange(width, device=area.device)
    y = torch.arange(height, device=area.device)
    across = (x >= low[:, :1]) & (x < high[:, :1])
    down = (y >= low[:, 1:]) & (y < high[:, 1:])
    return across[:, None, :] & down[:, :, None]


def _beta_quantiles(alpha: float, points: int = 16385) -> Tensor:
    """The inverse of the distribution function of Beta(alpha, alpha), so that shares can be looked up."""
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise MissingDependency('mixup and CutMix need scipy: pip install "ferattn[train]"') from error
    levels = torch.linspace(0, 1, points, dtype=torch.float64)
    return torch.from_numpy(betaincinv(alpha, alpha, levels.numpy())).float()
