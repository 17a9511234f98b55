"""Probabilities over time, calmer than frame by frame."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ferattn.errors import InvalidInput, InvalidOption, is_number

__all__ = ["Smoother"]

_KEPT = 64
"""Tracks of which none is forgotten."""

_FORGOTTEN = 80
"""Half-lives after which nothing is left of a weight: 2^-80, of the thousands that frames may sum up to."""


class Smoother:
    """The weighted mean of what a track showed until now, for one frame after the other.

    With p the probabilities at the times t up to now, it is the sum of 2^-((now - t) / half_life) p over the sum of
    those weights: the first frame counts as it is, and frames at changing rates as their times say. A camera
    may run for ever: of more than 64 tracks those are forgotten that are 80 half-lives behind the newest frame, where
    they would count no more.

    Args:
        half_life: Seconds after which a frame counts half; 0 forgets at once.

    Raises:
        InvalidOption: If it is negative or not finite.

    >>> smoother = Smoother(1.0)
    >>> smoother(0, {"happy": 1.0, "sad": 0.0}, 0.0)
    {'happy': 1.0, 'sad': 0.0}
    >>> smoother(0, {"happy": 0.25, "sad": 0.75}, 1.0)
    {'happy': 0.5, 'sad': 0.5}
    """

    def __init__(self, half_life: float) -> None:
        if not is_number(half_life) or not 0 <= half_life < math.inf:
            raise InvalidOption(f"a half-life of {half_life!r}: seconds, 0 or more.")
        self.half_life = half_life
        # By track, the one that was seen last at the end: when that was, the sum of the weights, the weighted sums.
        self._seen: dict[int, tuple[float, float, dict[str, float]]] = {}

    def __call__(self, track: int, probabilities: Mapping[str, float], seconds: float) -> dict[str, float]:
        """The mean of a track until now.

        Args:
            track: Its number.
            probabilities: What it shows now.
            seconds: When that is.

        Raises:
            InvalidInput: If that is before the track's last frame, or there are other names than then.
        """
        if not self.half_life:
            return dict(probabilities)
        before, weight, sums = self._seen.get(track, (seconds, 0.0, dict.fromkeys(probabilities, 0.0)))
        if not seconds >= before:
            raise InvalidInput(f"a frame at {seconds} s came after one at {before} s.")
        if sums.keys() != probabilities.keys():
            raise InvalidInput(f"probabilities of {', '.join(probabilities)}; they were of {', '.join(sums)}.")
        kept = 0.5 ** ((seconds - before) / self.half_life)
        weight, sums = kept * weight + 1, {name: kept * sums[name] + new for name, new in probabilities.items()}
        self._seen.pop(track, None)
        self._seen[track] = (seconds, weight, sums)
        while len(self._seen) > _KEPT and seconds - next(iter(self._seen.values()))[0] > _FORGOTTEN * self.half_life:
            del self._seen[next(iter(self._seen))]
        return {name: total / weight for name, total in sums.items()}
