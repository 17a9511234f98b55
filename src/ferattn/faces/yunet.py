"""YuNet through OpenCV: five landmarks, about 2 ms for a small picture on one CPU core.

Source: Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 2023.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from ferattn.errors import InvalidOption, MissingDependency, WeightsMismatch
from ferattn.faces.face import Face
from ferattn.faces.framing import Framing
from ferattn.faces.weights import YUNET_WEIGHTS, checksum, existing, fetch, verify

__all__ = ["YuNet", "import_cv2", "quiet"]


class YuNet:
    """The YuNet face detector.

    Args:
        weights: Path of its ONNX file; None takes the one of OpenCV's model zoo from the hub (0.2 MB, once).
        min_score: Faces with a lower confidence are left out.
        overlap: Of two boxes whose intersection over union is larger, only the better one is kept.
        min_side: Pictures whose shorter side is smaller are enlarged to this many pixels.
        max_side: Pictures whose longer side is larger are shrunk to this many pixels. YuNet breaks faces
            above about 500 pixels into pieces; raise it to find small faces in large pictures.
        border: Border added around the picture before detection, as a share of its shorter side.

    Raises:
        MissingDependency: If OpenCV is not installed or older than 4.8.
        WeightsMismatch: If the weights do not exist, cannot be fetched, or are not YuNet's.
        InvalidOption: If a number is out of range.
    """

    name = "yunet"

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        min_score: float = 0.6,
        overlap: float = 0.3,
        min_side: int = 112,
        max_side: int = 640,
        border: float = 0.0,
    ) -> None:
        for option, value in (("min_score", min_score), ("overlap", overlap)):
            if not 0 < value <= 1:
                raise InvalidOption(f"{option} is above 0 and at most 1; got {value}")
        self.min_score, self.overlap = min_score, overlap
        self.framing = Framing(min_side, max_side, border)
        cv2 = import_cv2("YuNet", "FaceDetectorYN")
        path = verify(fetch(YUNET_WEIGHTS), YUNET_WEIGHTS) if weights is None else existing(weights, "YuNet")
        self.sha256 = checksum(path)
        try:
            with quiet(cv2):
                self._net = cv2.FaceDetectorYN.create(str(path), "", (32, 32), min_score, overlap)
                # A network of another kind loads without complaint and fails at its first picture.
                self._net.detect(np.zeros((32, 32, 3), np.uint8))
        except cv2.error as error:
            raise WeightsMismatch(f"{str(path)!r} does not hold YuNet's weights: OpenCV cannot run it") from error

    def __repr__(self) -> str:
        return (
            f"YuNet(weights=sha256:{self.sha256[:12]}, min_score={self.min_score}, "
            f"overlap={self.overlap}, {self.framing})"
        )

    def __call__(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces, best first.

        Shape: image (h, w, 3), uint8, RGB.
        """
        framed, placement = self.framing.apply(image)
        self._net.setInputSize((framed.shape[1], framed.shape[0]))
        _, rows = self._net.detect(np.ascontiguousarray(framed[..., ::-1]))
        faces = []
        for row in [] if rows is None else rows.tolist():
            if not all(map(math.isfinite, row)) or row[2] <= 0 or row[3] <= 0:
                continue
            points = tuple((row[i], row[i + 1]) for i in range(4, 14, 2))
            faces.append(placement.back((row[0], row[1], row[2], row[3]), min(row[14], 1.0), points))
        return sorted(faces, key=lambda face: -(face.score or 0.0))


def import_cv2(what: str, needed: str) -> ModuleType:
    """OpenCV, if it is installed and has ``needed``.

    Raises:
        MissingDependency: If not.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingDependency(f'{what} needs OpenCV: pip install "ferattn[faces]"') from error
    if not hasattr(cv2, needed):
        raise MissingDependency(
            f"{what} needs an OpenCV that has cv2.{needed}, this one is {cv2.__version__}: "
            'pip install "ferattn[faces]"'
        )
    module: ModuleType = cv2
    return module


@contextmanager
def quiet(cv2: ModuleType) -> Iterator[None]:
    """Keep OpenCV from printing while a network is loaded: what goes wrong is raised, the rest is noise."""
    # OpenCV 4 has the switch at the top, OpenCV 5 in a module of its own; 0 is silent in both.
    switch = getattr(cv2.utils, "logging", cv2)
    before = switch.getLogLevel()
    switch.setLogLevel(0)
    try:
        yield
    finally:
        switch.setLogLevel(before)
