"""The detectors by name, and ``detect``: any picture in, faces out.

Build a detector once and use it for many pictures::

    detector = make_detector("yunet", weights="yunet.onnx")
    for path in paths:
        faces = detect(path, detector)
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ferattn.errors import (
    DetectorFailed,
    FerattnError,
    InvalidInput,
    InvalidOption,
    MissingDependency,
    WeightsMismatch,
    choose,
)
from ferattn.faces.cascade import cascade
from ferattn.faces.face import Detector, Face
from ferattn.faces.pictures import Channels, Picture, read_picture
from ferattn.faces.weights import YUNET_WEIGHTS, fetch, verify
from ferattn.faces.yolo5face import YOLO5Face
from ferattn.faces.yunet import YuNet, import_cv2

__all__ = [
    "DETECTORS",
    "SEVERAL",
    "CallableDetector",
    "Several",
    "WholePicture",
    "ask",
    "auto",
    "best_available",
    "detect",
    "make_detector",
    "pick",
]

Several = Literal["largest", "best", "drop"]

_log = logging.getLogger("ferattn.faces")


class WholePicture:
    """The whole picture is the face: for pictures that are cropped already.

    >>> WholePicture()(np.zeros((20, 10, 3), np.uint8))
    [Face(box=(0.0, 0.0, 10.0, 20.0), score=None, landmarks=None)]
    """

    name = "none"

    def __repr__(self) -> str:
        return "WholePicture()"

    def __call__(self, image: NDArray[np.uint8]) -> list[Face]:
        """One face as large as the picture.

        Shape: image (h, w, 3).
        """
        return [Face((0, 0, image.shape[1], image.shape[0]))]


class CallableDetector:
    """A user's function as a detector.

    Args:
        function: Takes an RGB picture (h, w, 3) of uint8 and returns an iterable of ``Face``, of boxes
            (x, y, width, height), or of boxes with a score (x, y, width, height, score).

    >>> middle = CallableDetector(lambda image: [(2, 2, 4, 4, 0.5)])
    >>> middle(np.zeros((8, 8, 3), np.uint8))
    [Face(box=(2.0, 2.0, 4.0, 4.0), score=0.5, landmarks=None)]
    """

    def __init__(self, function: Callable[[NDArray[np.uint8]], Iterable[Any]]) -> None:
        self.function = function
        self.name = getattr(function, "__qualname__", type(function).__qualname__)

    def __repr__(self) -> str:
        return f"CallableDetector({getattr(self.function, '__module__', '?')}.{self.name})"

    def __call__(self, image: NDArray[np.uint8]) -> list[Face]:
        """What the function finds, as faces.

        Shape: image (h, w, 3), uint8, RGB.

        Raises:
            InvalidInput: If the function returns something else.
        """
        found = self.function(image)
        try:
            return [self._face(item) for item in found]
        except TypeError as error:
            raise InvalidInput(
                f"the detector {self.name} returned {type(found).__name__}; "
                "expected Face objects, or boxes (x, y, width, height[, score])"
            ) from error

    def _face(self, item: Any) -> Face:
        if isinstance(item, Face):
            return item
        numbers = tuple(item)
        if len(numbers) not in (4, 5):
            raise InvalidInput(
                f"the detector {self.name} returned a box of {len(numbers)} numbers; "
                "expected (x, y, width, height[, score])"
            )
        return Face(numbers[:4], numbers[4] if len(numbers) == 5 else None)


def best_available() -> str:
    """Name of the best detector that works here, YuNet before the cascade; the log says which, and why.

    YuNet is taken if OpenCV has it and its weights are in the hub cache or can be fetched.

    Raises:
        WeightsMismatch: If YuNet's weights are there but damaged.
    """
    try:
        import_cv2("YuNet", "FaceDetectorYN")
        weights = fetch(YUNET_WEIGHTS)
    except (MissingDependency, WeightsMismatch) as error:
        _log.warning("face detector: cascade, because YuNet is not available: %s", error)
        return "cascade"
    verify(weights, YUNET_WEIGHTS)
    _log.info("face detector: yunet")
    return "yunet"


def auto() -> Detector:
    """The detector that ``best_available`` names; its ``name`` says which one that is.

    Raises:
        MissingDependency: If none works: neither OpenCV nor scikit-image is installed.
        WeightsMismatch: If YuNet's weights are there but damaged.
    """
    return DETECTORS[best_available()]()


DETECTORS: dict[str, Callable[..., Detector]] = {
    "auto": auto,
    "yunet": YuNet,
    "yolo5face": YOLO5Face,
    "cascade": cascade,
    "none": WholePicture,
}


def make_detector(
    detector: str | Detector | Callable[[NDArray[np.uint8]], Iterable[Any]] = "auto", **options: Any
) -> Detector:
    """A detector from its name, or from any callable.

    Args:
        detector: A name of ``DETECTORS``, a detector, or a function (see ``CallableDetector``).
        options: The options of the named detector, such as ``weights`` or ``min_score``; see its class.

    Raises:
        UnknownChoice: If the name is none of the table's.
        InvalidOption: If the detector does not take an option, or takes it with another value.
        InvalidInput: If ``detector`` is neither a name nor callable.
        MissingDependency: If the detector needs a package that is not installed.
        WeightsMismatch: If its weights do not exist or do not fit.

    >>> make_detector("none").name
    'none'
    >>> make_detector("none", min_score=0.5)
    Traceback (most recent call last):
    ...
    ferattn.errors.InvalidOption: detector 'none' takes no option 'min_score'; it takes none.
    """
    if isinstance(detector, str):
        build = choose(DETECTORS, detector, "detector")
        _check_options(f"detector {detector!r}", options, list(inspect.signature(build).parameters))
        return build(**options)
    if not callable(detector):
        raise InvalidInput(f"detector is one of {', '.join(DETECTORS)} or a callable; got {type(detector).__name__}")
    _check_options("a detector that is built already", options, [])
    return detector if isinstance(detector, Detector) else CallableDetector(detector)


def _check_options(what: str, given: Iterable[str], known: list[str]) -> None:
    for option in given:
        if option not in known:
            raise InvalidOption(f"{what} takes no option {option!r}; it takes {', '.join(known) or 'none'}.")


def detect(
    image: Picture,
    detector: str | Detector | Callable[[NDArray[np.uint8]], Iterable[Any]] = "auto",
    *,
    channels: Channels | None = None,
) -> list[Face]:
    """Find the faces in a picture.

    Args:
        image: A path, the bytes of a file, a PIL picture, an array or a tensor; see ``read_picture``.
        detector: A name of ``DETECTORS``, a detector from ``make_detector``, or a function. A name builds the
            detector anew each time, its weights included: for several pictures make one first, and give that.
        channels: ``"rgb"`` or ``"bgr"`` for a colour array.

    Returns:
        The faces in pixels of the upright picture; an empty list if there is none.

    Raises:
        InvalidInput: If the picture cannot be read.
        DetectorFailed: If the detector fails at it with an error of its own.
        UnknownChoice: If there is no such detector.

    >>> detect(np.zeros((20, 10), np.uint8), "none")[0].box
    (0.0, 0.0, 10.0, 20.0)
    """
    built = make_detector(detector)
    return ask(built, read_picture(image, channels=channels))


def ask(detector: Detector, image: NDArray[np.uint8]) -> list[Face]:
    """The faces that a detector finds.

    Raises:
        DetectorFailed: If it fails with an error of its own, which another picture need not meet.
    """
    try:
        return detector(image)
    except (FerattnError, MemoryError):
        raise  # an impossible option, or nothing that the next picture would not meet too
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DetectorFailed(f"the detector {detector.name!r} failed: {told}") from error


def _largest(faces: list[Face]) -> Face | None:
    return max(faces, key=lambda face: face.area)


def _best(faces: list[Face]) -> Face | None:
    if any(face.score is None for face in faces):
        raise InvalidOption("several='best' needs a detector that gives scores; use 'largest' with this one")
    return max(faces, key=lambda face: face.score or 0.0)


def _only(faces: list[Face]) -> Face | None:
    return faces[0] if len(faces) == 1 else None


SEVERAL: dict[str, Callable[[list[Face]], Face | None]] = {"largest": _largest, "best": _best, "drop": _only}


def pick(faces: list[Face], several: Several = "largest") -> Face | None:
    """The one face to use, or None.

    Args:
        faces: What a detector found.
        several: What to do with more than one: ``"largest"`` or ``"best"`` (by score) takes that one,
            ``"drop"`` takes none.

    Raises:
        UnknownChoice: If ``several`` is something else.
        InvalidOption: If ``several`` is ``"best"`` and the faces have no scores.

    >>> pick([Face((0, 0, 2, 2)), Face((5, 5, 4, 4))]).box
    (5.0, 5.0, 4.0, 4.0)
    """
    choice = choose(SEVERAL, several, "several")
    return choice(faces) if faces else None
