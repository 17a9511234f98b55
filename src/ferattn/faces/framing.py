"""Bringing a picture to a size at which a detector finds faces, and the faces back to the picture.

Detectors are trained on faces of certain sizes. A 48x48 picture that is all face has to be enlarged, and for
a cascade surrounded, before the face is found; a face of 1000 pixels has to be shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ferattn.errors import InvalidOption
from ferattn.faces.face import Box, Face, Points

__all__ = ["Framing", "Placement", "resize"]


@dataclass(frozen=True)
class Placement:
    """Where the original picture lies in the framed one: framed = (original + offset) * scale."""

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def back(self, box: Box, score: float | None, landmarks: Points | None = None) -> Face:
        """A face of the framed picture, in pixels of the original one."""
        x, y, width, height = box
        points = None
        if landmarks is not None:
            points = tuple(
                (px / self.scale_x - self.offset_x, py / self.scale_y - self.offset_y) for px, py in landmarks
            )
        corner = (x / self.scale_x - self.offset_x, y / self.scale_y - self.offset_y)
        return Face((*corner, width / self.scale_x, height / self.scale_y), score, points)


@dataclass(frozen=True)
class Framing:
    """Size limits in pixels and a border.

    Args:
        min_side: A picture whose shorter side is smaller is enlarged until it is not.
        max_side: A picture whose longer side is larger is shrunk until it is not; this one wins.
        border: Width of a border added on every side first, as a share of the shorter side. It repeats the
            outermost pixels.

    Raises:
        InvalidOption: If a limit is not positive, the two contradict each other, or the border is not in 0 to
            2.
    """

    min_side: int
    max_side: int
    border: float = 0.0

    def __post_init__(self) -> None:
        for name, side in (("min_side", self.min_side), ("max_side", self.max_side)):
            if side < 1:
                raise InvalidOption(f"{name} is a number of pixels, at least 1; got {side}")
        if self.min_side > self.max_side:
            raise InvalidOption(f"min_side={self.min_side} is larger than max_side={self.max_side}")
        if not 0 <= self.border <= 2:
            raise InvalidOption(f"border is a share of the picture between 0 and 2; got {self.border}")

    def __str__(self) -> str:
        return f"min_side={self.min_side}, max_side={self.max_side}, border={self.border}"

    def apply(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Placement]:
        """The picture as the detector should see it, and the way back.

        Shape: (h, w, 3) -> (h', w', 3).
        """
        border = round(self.border * min(image.shape[:2]))
        if border:
            image = np.pad(image, ((border, border), (border, border), (0, 0)), mode="edge")
        height, width = image.shape[:2]
        scale = min(max(1.0, self.min_side / min(height, width)), self.max_side / max(height, width))
        to_height, to_width = max(1, round(height * scale)), max(1, round(width * scale))
        placement = Placement(to_width / width, to_height / height, border, border)
        return resize(image, to_height, to_width), placement


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bilinear resizing with antialiasing, in PyTorch because that is always installed.

    Shape: (h, w, 3) -> (height, width, 3).
    """
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())
