"""Whether pictures have been histogram-equalised: weights want pictures like those that they learnt from."""

from __future__ import annotations

import torch
from torch import Tensor

from ferattn.data.cache import CachedDataset
from ferattn.errors import InvalidInput, InvalidOption

__all__ = ["equalised_share", "is_equalised", "mostly"]

_FAR = 0.04  # of 1; medians: 0.005 over equalised FER2013 pictures, 0.18 over pieces of photographs


def is_equalised(image: Tensor) -> bool:
    """Whether histogram equalisation would leave a picture as it is.

    Equalised, the level of a pixel is the share of pixels that are no brighter, without the darkest ones, as OpenCV
    computes it. Recoding as JPEG blurs that: what counts is whether the two differ by less than 4 % of the range, on
    average over the pixels.

    Shape: (c, h, w), uint8; channels are taken together.

    >>> is_equalised(torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16))
    True
    >>> is_equalised(torch.arange(100, 200, dtype=torch.uint8).reshape(1, 10, 10))
    False
    """
    counts = torch.bincount(image.flatten().long(), minlength=256).double()
    below = counts.cumsum(0)
    darkest = below[counts > 0][0]
    if darkest == below[-1]:
        return False  # a single level tells nothing
    levels = torch.arange(256, dtype=torch.float64, device=image.device) / 255
    wanted = (below - darkest).clamp(min=0) / (below[-1] - darkest)
    return float((wanted - levels).abs() @ counts / below[-1]) < _FAR


def equalised_share(dataset: CachedDataset, limit: int = 1000) -> float:
    """The share of pictures that are histogram-equalised.

    Args:
        dataset: The pictures.
        limit: So many of them are looked at, evenly spread, where there are more.

    Raises:
        InvalidInput: If there are none.
        InvalidOption: If the limit is not positive.
    """
    if limit < 1:
        raise InvalidOption(f"limit={limit!r}: at least 1.")
    if not len(dataset):
        raise InvalidInput(f"{dataset.name} is empty.")
    rows = torch.linspace(0, len(dataset) - 1, min(limit, len(dataset))).round().long()
    images = dataset.images[rows.to(dataset.images.device)].cpu()
    return sum(is_equalised(image) for image in images) / len(images)


def mostly(share: float | None) -> bool | None:
    """Whether such a share of equalised pictures makes weights expect them; None where the share is not known.

    >>> mostly(0.95), mostly(0.1), mostly(None)
    (True, False, None)
    """
    return None if share is None else share > 0.5
