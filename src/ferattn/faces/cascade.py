"""Cascades that need no download: OpenCV 4's Haar cascade, scikit-image's packaged LBP cascade elsewhere.

OpenCV 5 has no ``CascadeClassifier`` any more. A cascade gives a box without score or landmarks, misses
turned faces and finds some that are none: it is the fallback, not the choice.

Source: Viola and Jones, "Rapid object detection using a boosted cascade of simple features", CVPR 2001
(Haar); Liao et al., "Learning multi-scale block local binary patterns for face recognition", ICB 2007 (LBP).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferattn.errors import InvalidOption, MissingDependency
from ferattn.faces.face import Box, Detector, Face
from ferattn.faces.framing import Framing
from ferattn.faces.pictures import to_gray
from ferattn.faces.yunet import import_cv2

__all__ = ["HaarCascade", "LbpCascade", "cascade", "haar_file"]

_SMALLEST = 24  # side of both cascades' window, in pixels


class _Options:
    """What both cascades can be told; see ``cascade``."""

    name: str

    def __init__(self, min_face: float, min_neighbors: int, min_side: int, max_side: int, border: float) -> None:
        if not 0 < min_face <= 1:
            raise InvalidOption(f"min_face is a share above 0 and at most 1; got {min_face}")
        if min_neighbors < 1:
            raise InvalidOption(f"min_neighbors is at least 1; got {min_neighbors}")
        self.min_face, self.min_neighbors = min_face, min_neighbors
        self.framing = Framing(min_side, max_side, border)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(min_face={self.min_face}, min_neighbors={self.min_neighbors}, {self.framing})"

    def __call__(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces, largest first.

        Shape: image (h, w, 3), uint8, RGB.
        """
        framed, placement = self.framing.apply(image)
        side = min(framed.shape[:2])
        if side < _SMALLEST:
            return []
        boxes = self._boxes(framed, max(_SMALLEST, round(self.min_face * side)))
        return [placement.back(box, None) for box in _largest_first(boxes)]

    def _boxes(self, image: NDArray[np.uint8], smallest: int) -> list[Box]:
        raise NotImplementedError


class HaarCascade(_Options):
    """OpenCV 4's frontal face cascade; see ``cascade`` for the arguments."""

    name = "cascade-haar"

    def __init__(
        self,
        *,
        min_face: float = 0.12,
        min_neighbors: int = 4,
        min_side: int = 96,
        max_side: int = 480,
        border: float = 0.25,
    ) -> None:
        super().__init__(min_face, min_neighbors, min_side, max_side, border)
        path = haar_file()
        if path is None:
            raise MissingDependency("the Haar cascade needs OpenCV 4; OpenCV 5 has none")
        cv2 = import_cv2("the Haar cascade", "CascadeClassifier")
        self._classifier = cv2.CascadeClassifier(str(path))

    def _boxes(self, image: NDArray[np.uint8], smallest: int) -> list[Box]:
        found = self._classifier.detectMultiScale(
            to_gray(image), scaleFactor=1.1, minNeighbors=self.min_neighbors, minSize=(smallest, smallest)
        )
        return [(float(x), float(y), float(w), float(h)) for x, y, w, h in found]


class LbpCascade(_Options):
    """scikit-image's frontal face cascade; see ``cascade`` for the arguments."""

    name = "cascade-lbp"

    def __init__(
        self,
        *,
        min_face: float = 0.12,
        min_neighbors: int = 4,
        min_side: int = 96,
        max_side: int = 480,
        border: float = 0.25,
    ) -> None:
        super().__init__(min_face, min_neighbors, min_side, max_side, border)
        try:
            from skimage import data
            from skimage.feature import Cascade
        except ImportError as error:
            raise MissingDependency(
                'the cascade needs scikit-image (or OpenCV 4): pip install "ferattn[faces]"'
            ) from error
        self._classifier = Cascade(data.lbp_frontal_face_cascade_filename())

    def _boxes(self, image: NDArray[np.uint8], smallest: int) -> list[Box]:
        found = self._classifier.detect_multi_scale(
            img=to_gray(image),
            scale_factor=1.1,
            step_ratio=1,
            min_size=(smallest, smallest),
            max_size=image.shape[:2],
            min_neighbor_number=self.min_neighbors,
        )
        return [(float(f["c"]), float(f["r"]), float(f["width"]), float(f["height"])) for f in found]


def cascade(
    *,
    min_face: float = 0.12,
    min_neighbors: int = 4,
    min_side: int = 96,
    max_side: int = 480,
    border: float = 0.25,
) -> Detector:
    """OpenCV 4's Haar cascade where there is one, scikit-image's LBP cascade elsewhere.

    Args:
        min_face: The smallest face looked for, as a share of the shorter side of the picture.
        min_neighbors: How many neighbouring windows must agree on a face.
        min_side: Pictures whose shorter side is smaller are enlarged to this many pixels.
        max_side: Pictures whose longer side is larger are shrunk to this many pixels.
        border: Border added around the picture before detection, as a share of its shorter side: both
            cascades want to see something around a face.

    Raises:
        MissingDependency: If neither OpenCV 4 nor scikit-image is installed.
        InvalidOption: If a number is out of range.
    """
    kind = LbpCascade if haar_file() is None else HaarCascade
    return kind(min_face=min_face, min_neighbors=min_neighbors, min_side=min_side, max_side=max_side, border=border)


def haar_file() -> Path | None:
    """OpenCV's frontal face cascade, or None where OpenCV is missing, has no cascades, or lacks the file."""
    try:
        import cv2
    except ImportError:
        return None
    folder = getattr(getattr(cv2, "data", None), "haarcascades", None)
    if not hasattr(cv2, "CascadeClassifier") or folder is None:
        return None
    path = Path(folder) / "haarcascade_frontalface_default.xml"
    return path if path.is_file() else None


def _largest_first(boxes: list[Box]) -> list[Box]:
    """The boxes by falling area, without those that lie for more than half within a larger one."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda b: -b[2] * b[3]):
        if all(_shared(box, other) <= 0.5 * box[2] * box[3] for other in kept):
            kept.append(box)
    return kept


def _shared(a: Box, b: Box) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
