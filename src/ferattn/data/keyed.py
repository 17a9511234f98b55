"""Random numbers that depend on (seed, epoch, image) and on nothing else.

What happens to an image is then the same in any batch, worker, process and device, and a run can be resumed
in the middle of an epoch without restoring the state of a generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ferattn.errors import InvalidOption

__all__ = ["check_seed", "keyed_uniform"]

# SplitMix64 (Steele, Lea & Flood 2014), its constants as signed 64-bit numbers; products wrap around.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def check_seed(seed: int) -> int:
    """The seed, if it is one.

    Raises:
        InvalidOption: If it is not a whole number from 0 to 2^62.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= 2**62:
        raise InvalidOption(f"seed={seed!r}: a whole number, 0 or larger, is needed.")
    return seed


def _shift(bits: Tensor, places: int) -> Tensor:
    return (bits >> places) & ((1 << (64 - places)) - 1)  # >> alone repeats the sign


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _FIRST
    bits = (bits ^ _shift(bits, 27)) * _SECOND
    return bits ^ _shift(bits, 31)


def keyed_uniform(seed: int, epoch: int, indices: Tensor, columns: int) -> Tensor:
    """Numbers in [0, 1) for each image: a hash of the seed, the epoch, the image and the column.

    Args:
        seed: Of the run.
        epoch: Of the run.
        indices: Positions of the images in their dataset, shape (b,), on any device.
        columns: How many numbers for each image.

    Shape: (b, columns), 32-bit, on the device of ``indices``

    >>> a = keyed_uniform(0, 1, torch.tensor([5, 7]), 3)
    >>> a.shape, torch.equal(a[1:], keyed_uniform(0, 1, torch.tensor([7]), 3))
    (torch.Size([2, 3]), True)
    """
    key = torch.tensor(seed, dtype=torch.int64, device="cpu")  # one number is no work for a GPU
    key = _mix(_mix(key + _GAMMA) + epoch * 2 + 1)
    image = _mix((indices.to(torch.int64) + 1) * _GAMMA + int(key))
    column = torch.arange(1, columns + 1, dtype=torch.int64, device=indices.device) * _GAMMA
    bits = _mix(image[:, None] + column)
    return _shift(bits, 40).to(torch.float32) / 2**24
