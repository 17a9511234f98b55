"""What a detector finds, and what a detector is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ferattn.errors import InvalidInput

__all__ = ["Box", "Detector", "Face", "Points"]

Box = tuple[float, float, float, float]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Face:
    """One face in a picture, in pixels of the upright picture (EXIF orientation applied).

    Args:
        box: x and y of the upper left corner, width, height. It may stick out of the picture.
        score: The detector's confidence between 0 and 1; None where the detector has none (cascades).
        landmarks: Five points (x, y): the eye on the left of the picture, the eye on the right, the nose,
            the corner of the mouth on the left, the one on the right. None where the detector has none.

    Raises:
        InvalidInput: If the box has no area or a number is not finite, the score is outside 0 to 1, or there
            are not five landmarks.

    >>> Face(box=(10, 20, 30, 40), score=0.9).area
    1200.0
    """

    box: Box
    score: float | None = None
    landmarks: Points | None = None

    def __post_init__(self) -> None:
        box = _floats(self.box, 4, "box")
        if box[2] <= 0 or box[3] <= 0:
            raise InvalidInput(f"a face's box is (x, y, width, height) with an area; got {box}")
        object.__setattr__(self, "box", box)
        if self.score is not None:
            score = _floats((self.score,), 1, "score")[0]
            if not 0 <= score <= 1:
                raise InvalidInput(f"a face's score is between 0 and 1, or None; got {score}")
            object.__setattr__(self, "score", score)
        if self.landmarks is not None:
            if len(self.landmarks) != 5:
                raise InvalidInput(f"a face has five landmarks (x, y), or None; got {len(self.landmarks)}")
            object.__setattr__(self, "landmarks", tuple(_floats(p, 2, "landmark") for p in self.landmarks))

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return self.box[2] * self.box[3]

    @property
    def eye_angle(self) -> float:
        """Slope of the line through the eyes in radians; positive if the right one is lower.

        0 without landmarks.

        >>> Face((0, 0, 9, 9), None, ((2, 2), (6, 6), (4, 6), (2, 8), (6, 8))).eye_angle == math.pi / 4
        True
        """
        if self.landmarks is None:
            return 0.0
        (left_x, left_y), (right_x, right_y) = self.landmarks[:2]
        return math.atan2(right_y - left_y, right_x - left_x)


def _floats(values: Sequence[float], count: int, what: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise InvalidInput(f"a face's {what} is {count} numbers; got {values!r}") from None
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise InvalidInput(f"a face's {what} is {count} finite numbers; got {values!r}")
    return numbers


@runtime_checkable
class Detector(Protocol):
    """Anything with a name that turns a picture into faces.

    Its ``repr`` is what a crop report records, so it should show every setting that changes the result.
    """

    @property
    def name(self) -> str:
        """Short name, such as ``"yunet"``."""
        ...

    def __call__(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces in one picture.

        Shape: image (h, w, 3), uint8, RGB.
        """
        ...
