"""Videos: their frames at the times that the file gives, and which faces of successive frames are in one place.

>>> tracker = FaceTracker()
>>> tracker([Face((0, 0, 10, 10)), Face((50, 0, 10, 10))], 0.0)
[0, 1]
>>> tracker([Face((51, 0, 10, 10)), Face((1, 0, 10, 10))], 0.04)
[1, 0]
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferattn.errors import InvalidInput, InvalidOption, MissingDependency
from ferattn.faces.face import Box, Face
from ferattn.faces.yunet import import_cv2

__all__ = ["FaceTracker", "read_video"]

_MOST = 0.9  # of the frames that a video promises; some promise what they guess


def read_video(path: str | Path, *, every: float = 0.0) -> Iterator[tuple[int, float, NDArray[np.uint8]]]:
    """Number, seconds from the first frame on, and BGR pixels of the frames of a video.

    Args:
        path: Of the file.
        every: Seconds from one frame that is handed out to the next; 0 for every frame.

    Shape: pixels (h, w, 3), uint8

    Raises:
        InvalidInput: If the video cannot be read; it warns of one that ends early.
        InvalidOption: If ``every`` is negative or not finite.
        MissingDependency: If OpenCV is not installed.
    """
    if not 0 <= every < math.inf:
        raise InvalidOption(f"every={every!r}: seconds, 0 or more.")
    path = Path(path)
    cv2 = import_cv2("video", "VideoCapture")
    if not path.is_file():
        raise InvalidInput(f"there is no video at {str(path)!r}")
    film = cv2.VideoCapture(str(path))
    try:
        rate, promised = film.get(cv2.CAP_PROP_FPS), film.get(cv2.CAP_PROP_FRAME_COUNT)
        usual = 1 / rate if rate > 0 else 0.0  # seconds from frame to frame
        index, first, last, due = 0, 0.0, 0.0, 0.0
        while film.grab():
            # The frame's own time: phones and browsers record at changing rates. Not every file has it.
            at = film.get(cv2.CAP_PROP_POS_MSEC) / 1e3
            first = at if index == 0 else first
            seconds = at - first if at - first > last or index == 0 else last + usual
            last = seconds
            if seconds >= due - 1e-6:
                good, pixels = film.retrieve()
                if good:
                    yield index, seconds, pixels
                if every:
                    due += every * (math.floor((seconds + 1e-6 - due) / every) + 1)
            index += 1
    finally:
        film.release()
    if not index:
        raise InvalidInput(f"cannot read {str(path)!r} as a video")
    if index < _MOST * promised:
        warnings.warn(f"{str(path)!r} ends after {index} of {promised:.0f} frames: is it damaged?", stacklevel=2)


@dataclass
class _Track:
    """A face that is followed.

    Attributes:
        number: The track's own.
        box: Where it was last.
        seconds: When that was.
    """

    number: int
    box: Box
    seconds: float


class FaceTracker:
    """Gives a face the same number in each frame of a video, for as long as its boxes overlap.

    Of all ways to join the boxes of a frame with those before, it takes the one with the largest sum of intersections
    over unions. It looks at boxes alone, not at who it is: two people who change places between two frames change
    numbers, and someone who comes back later has a new one.

    Args:
        min_overlap: Intersection over union from which two boxes can be one face's.
        max_gap: Seconds for which a face may be missed before its number ends.

    Raises:
        InvalidOption: If a number is out of range.
        MissingDependency: If SciPy is not installed.

    Source: Bewley et al. 2016, "Simple online and realtime tracking", arXiv 1602.00763, section 3.3, without its
    motion model.
    """

    def __init__(self, *, min_overlap: float = 0.3, max_gap: float = 1.0) -> None:
        if not 0 < min_overlap <= 1:
            raise InvalidOption(f"min_overlap={min_overlap!r}: above 0, at most 1.")
        if not max_gap >= 0:
            raise InvalidOption(f"max_gap={max_gap!r}: seconds, 0 or more.")
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError as error:
            raise MissingDependency('following faces needs SciPy: pip install "ferattn[faces]"') from error
        self.min_overlap, self.max_gap = min_overlap, max_gap
        self._join = linear_sum_assignment
        self._tracks: list[_Track] = []
        self._before, self._next = -math.inf, 0

    def __call__(self, faces: Sequence[Face], seconds: float) -> list[int]:
        """The number of each face of the next frame, from 0 on.

        Args:
            faces: Of the frame.
            seconds: Its time.

        Raises:
            InvalidInput: If the frame is earlier than the one before.
        """
        if not seconds >= self._before:
            raise InvalidInput(f"a frame at {seconds} s came after one at {self._before} s.")
        # However far apart the frames are, each may be joined with the one before it.
        oldest = min(seconds - self.max_gap, self._before)
        self._tracks = [track for track in self._tracks if track.seconds >= oldest]
        self._before = seconds
        overlaps = _overlaps([track.box for track in self._tracks], [face.box for face in faces])
        joined = {
            int(column): self._tracks[row]
            for row, column in zip(
                *self._join(np.where(overlaps < self.min_overlap, 0, overlaps), maximize=True), strict=True
            )
            if overlaps[row, column] >= self.min_overlap
        }
        return [self._follow(joined.get(index), face, seconds) for index, face in enumerate(faces)]

    def _follow(self, track: _Track | None, face: Face, seconds: float) -> int:
        if track is None:
            track = _Track(self._next, face.box, seconds)
            self._tracks.append(track)
            self._next += 1
        track.box, track.seconds = face.box, seconds
        return track.number


def _overlaps(one: Sequence[Box], other: Sequence[Box]) -> NDArray[np.float64]:
    """Intersection over union of each box with each.

    Shape: (m, 4), (n, 4) -> (m, n)
    """
    a = np.asarray(one, float).reshape(-1, 1, 4)
    b = np.asarray(other, float).reshape(1, -1, 4)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = (high - low).clip(0).prod(-1)
    return np.asarray(shared / (a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared))
