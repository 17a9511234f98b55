"""Zoom, shift, crop, rotation and mirroring of a batch, each image by its own numbers, in one resampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["affine", "erase"]


def affine(
    images: Tensor,
    scale: Tensor,
    centre: Tensor,
    radians: Tensor | None = None,
    mirror: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Resample a window of each image, bilinearly, the border repeated outside.

    ``torchvision.transforms.v2`` draws one set of numbers for a whole batch; this takes one set for each
    image.

    Args:
        images: Shape (b, c, h, w), floating point.
        scale: Width and height of the window as a share of the image's, shape (b, 2).
        centre: Where the window's centre lies, x and y from -1 to 1 over the image, shape (b, 2).
        radians: Rotation of the content about the window's centre, counter-clockwise, shape (b,).
        mirror: Which images to mirror left to right, shape (b,).
        size: Height and width of the result; by default those of ``images``.

    Shape: (b, c, h, w), with the height and width of ``size``
    """
    h, w = images.shape[-2:]
    size = (h, w) if size is None else size
    sx, sy = scale.unbind(1)
    if radians is None:
        zero = torch.zeros_like(sx)
        matrix = torch.stack([sx, zero, centre[:, 0], zero, sy, centre[:, 1]], 1)
    else:
        # Rotate in the output's pixels, where both axes have the same unit; y points down.
        aspect = size[0] / size[1]
        cos, sin = radians.cos(), radians.sin()
        matrix = torch.stack(
            [sx * cos, -sx * sin * aspect, centre[:, 0], sy * sin / aspect, sy * cos, centre[:, 1]], 1
        )
    matrix = matrix.view(-1, 2, 3)
    if mirror is not None:
        sign = torch.where(mirror, -1.0, 1.0).to(matrix.dtype)
        matrix = torch.cat([matrix[:, :, :1] * sign[:, None, None], matrix[:, :, 1:]], 2)
    grid = F.affine_grid(matrix.to(images.dtype), [len(images), images.shape[1], *size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def erase(images: Tensor, area: Tensor, log_ratio: Tensor, corner: Tensor, value: float = 0.0) -> Tensor:
    """Blank a rectangle in each image (Zhong et al. 2017, arXiv 1708.04896).

    Args:
        images: Shape (b, c, h, w).
        area: Share of the image to blank, shape (b,); 0 leaves the image alone.
        log_ratio: Logarithm of width over height, shape (b,).
        corner: Where the upper left corner lies within the room there is, x and y from 0 to 1, shape (b, 2).
        value: What to fill in.

    Shape: (b, c, h, w)
    """
    h, w = images.shape[-2:]
    root = (area * h * w).sqrt()
    wide = (root * (log_ratio / 2).exp()).clamp(max=w).round()
    tall = (root * (-log_ratio / 2).exp()).clamp(max=h).round()
    left = (corner[:, 0] * (w - wide + 1)).floor()
    top = (corner[:, 1] * (h - tall + 1)).floor()
    x = torch.arange(w, device=images.device)
    y = torch.arange(h, device=images.device)
    across = (x >= left[:, None]) & (x < (left + wide)[:, None])
    down = (y >= top[:, None]) & (y < (top + tall)[:, None])
    return images.masked_fill(across[:, None, None, :] & down[:, None, :, None], value)
