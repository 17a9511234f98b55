"""From a face in a picture to the square the networks take: upright, undistorted, of one size.

Source: Miskow & Altahhan 2022 (arXiv 2410.17740): detected face, cropped, 80x80, grayscale. The margin and
the alignment are not in the papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ferattn.errors import InvalidInput, InvalidOption, choose, require_whole
from ferattn.faces.face import Face
from ferattn.faces.pictures import Channels, Picture, read_picture, to_gray

__all__ = ["COLORS", "PADDINGS", "Color", "Padding", "check_crop_options", "crop"]

Color = Literal["gray", "rgb"]
Padding = Literal["edge", "black"]

# What grid_sample and np.pad call it.
PADDINGS: dict[str, tuple[str, Literal["edge", "constant"]]] = {
    "edge": ("border", "edge"),
    "black": ("zeros", "constant"),
}
COLORS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "gray": to_gray,
    "rgb": np.ascontiguousarray,
}


def crop(
    image: Picture,
    face: Face,
    size: int = 80,
    *,
    margin: float = 0.1,
    square: bool = True,
    align: bool = True,
    color: Color = "gray",
    padding: Padding = "edge",
    channels: Channels | None = None,
) -> NDArray[np.uint8]:
    """Cut a face out of a picture.

    Nothing is ever distorted. One bilinear sampling turns, shifts and enlarges; shrinking is antialiased.

    Args:
        image: A path, the bytes of a file, a PIL picture, an array or a tensor; see ``read_picture``.
        face: Where the face is.
        size: Height and width of the result in pixels.
        margin: Added to the box on every side, as a share of its width and height; negative cuts closer.
        square: Widen the shorter side of the box until it is a square, showing more of the picture. Without
            it the box stays as it is and the rest of the result is padding.
        align: Turn the picture about the middle of the box so that the eyes are level, if the face has
            landmarks.
        color: ``"gray"`` or ``"rgb"``.
        padding: What stands where the picture ends: ``"edge"`` repeats its outermost pixels, ``"black"`` is
            black.
        channels: ``"rgb"`` or ``"bgr"`` for a colour array.

    Shape: returns (size, size) for gray, (size, size, 3) for RGB, uint8.

    Raises:
        InvalidInput: If the picture cannot be read, or the face lies outside of it.
        InvalidOption: If ``size`` or ``margin`` is out of range.
        UnknownChoice: If ``color`` or ``padding`` is none of the options.

    >>> crop(np.zeros((48, 48), np.uint8), Face((8, 8, 32, 32)), size=64).shape
    (64, 64)
    """
    check_crop_options(size=size, margin=margin, color=color, padding=padding)
    pixels = read_picture(image, channels=channels)
    height, width = pixels.shape[:2]
    x, y, box_width, box_height = face.box
    if is_outside(face, width, height):
        raise InvalidInput(f"the face {face.box} lies outside the picture of {width}x{height} pixels")
    centre = (x + box_width / 2, y + box_height / 2)
    box_width, box_height = box_width * (1 + 2 * margin), box_height * (1 + 2 * margin)
    if square:
        box_width = box_height = max(box_width, box_height)
    scale = size / max(box_width, box_height)
    columns, rows = max(1, round(box_width * scale)), max(1, round(box_height * scale))

    # Sample at the picture's own resolution where the result is smaller, then shrink with antialiasing.
    fine_columns = max(columns, min(math.ceil(box_width), _LARGEST))
    fine_rows = max(rows, min(math.ceil(box_height), _LARGEST))
    angle = face.eye_angle if align else 0.0
    to_grid, to_array = PADDINGS[padding]
    extent, shape = (box_width, box_height), (fine_rows, fine_columns)
    sampled = _sample(pixels, COLORS[color], centre, extent, angle, shape, to_grid)
    if (fine_rows, fine_columns) != (rows, columns):
        sampled = F.interpolate(sampled, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
    result = sampled[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
    result = result[..., 0] if color == "gray" else result
    top, left = (size - rows) // 2, (size - columns) // 2
    around = [(top, size - rows - top), (left, size - columns - left), (0, 0)][: result.ndim]
    return np.ascontiguousarray(np.pad(result, around, mode=to_array))


def is_outside(face: Face, width: int, height: int) -> bool:
    """Whether no part of a face lies in a picture of ``width`` x ``height`` pixels."""
    x, y, box_width, box_height = face.box
    return x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0


_LARGEST = 4096  # pixels on a side, sampled before shrinking; keeps an absurd box from taking all memory


def check_crop_options(*, size: int, margin: float, color: str, padding: str) -> None:
    """Refuse impossible options of ``crop``.

    Raises:
        InvalidOption: If ``size`` or ``margin`` is out of range.
        UnknownChoice: If ``color`` or ``padding`` is none of the options.
    """
    if require_whole(size, "size", least=1) > _LARGEST:
        raise InvalidOption(f"size is a number of pixels between 1 and {_LARGEST}; got {size}")
    if not -0.5 < margin <= 4:
        raise InvalidOption(f"margin is a share of the box, above -0.5 and at most 4; got {margin}")
    choose(COLORS, color, "color")
    choose(PADDINGS, padding, "padding")


def _sample(
    pixels: NDArray[np.uint8],
    colored: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    centre: tuple[float, float],
    extent: tuple[float, float],
    angle: float,
    shape: tuple[int, int],
    padding: str,
) -> torch.Tensor:
    """A turned rectangle of the picture at ``shape``, bilinearly. Pixel centres lie at halves."""
    rows, columns = shape
    across = ((torch.arange(columns) + 0.5) / columns - 0.5)[None, :] * extent[0]
    down = ((torch.arange(rows) + 0.5) / rows - 0.5)[:, None] * extent[1]
    cosine, sine = math.cos(angle), math.sin(angle)
    x = centre[0] + across * cosine - down * sine
    y = centre[1] + across * sine + down * cosine

    # Only the part of the picture that is looked at becomes gray and floats: a face in 50 megapixels stays cheap.
    height, width = pixels.shape[:2]
    left, right = _window(x, width)
    top, bottom = _window(y, height)
    part = colored(pixels[top:bottom, left:right]).reshape(bottom - top, right - left, -1)
    part = np.require(part, requirements=["C", "W"])  # a copy where the caller's array is read-only, for PyTorch
    source = torch.from_numpy(part).permute(2, 0, 1)[None].float()
    grid = torch.stack([2 * (x - left) / (right - left) - 1, 2 * (y - top) / (bottom - top) - 1], dim=-1)
    return F.grid_sample(source, grid[None], mode="bilinear", padding_mode=padding, align_corners=False)


def _window(positions: torch.Tensor, length: int) -> tuple[int, int]:
    first = min(max(int(positions.min().floor()) - 2, 0), length - 1)
    last = max(min(int(positions.max().ceil()) + 2, length), first + 1)
    return first, last
