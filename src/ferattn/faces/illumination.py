"""Illumination: gamma equalisation, emboss and local binary patterns as tried by Chap 2021; histogram equalisation.

The paper's Table 2 (FER2013) reports 70.89 % with face detection, 71.43 % with gamma equalisation after it,
69.26 % with emboss and 65.05 % with local binary patterns on top. It names the three operations and leaves
their formulas open; each function below says which one was chosen. Histogram equalisation is what some copies of
FER2013 come with (``ferattn data info`` tells). None is applied unless asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from ferattn.errors import InvalidInput, InvalidOption, choose

__all__ = [
    "GRAY_ONLY",
    "ILLUMINATION",
    "emboss",
    "gamma_equalise",
    "histogram_equalise",
    "illuminate",
    "local_binary_pattern",
]

_LARGEST_GAMMA = 8.0


def gamma_equalise(image: NDArray[np.uint8], target: float = 0.5) -> NDArray[np.uint8]:
    """Give every picture the same mean brightness by one gamma curve for the whole picture.

    ``v' = 255 (v / 255)^gamma``, with the gamma for which the mean of ``v' / 255`` is ``target``. It is found
    by bisection, because the mean of a power has no closed form; the common shortcut ``log(target) /
    log(mean)`` misses the target and depends on the gamma a picture was taken with, while this one undoes it.
    Gamma stays between 1/8 and 8, so that a nearly black picture is not blown up to noise. In colour one
    gamma, from the mean over all channels, serves the three.

    Args:
        image: The picture.
        target: Mean brightness to reach, between 0 and 1.

    Shape: (h, w) or (h, w, 3) -> the same, uint8.

    Raises:
        InvalidInput: If the picture is not uint8 of such a shape.
        InvalidOption: If ``target`` is not between 0 and 1.

    Source: Chap 2021, preprocessing ("global gamma equalisation", no formula given; this choice is ours).

    >>> gamma_equalise(np.full((2, 2), 64, np.uint8))
    array([[127, 127],
           [127, 127]], dtype=uint8)
    """
    _check(image, (2, 3))
    if not 0 < target < 1:
        raise InvalidOption(f"target is a brightness between 0 and 1; got {target}")
    levels = np.arange(256) / 255
    shares = np.bincount(image.reshape(-1), minlength=256) / image.size
    low, high = -math.log(_LARGEST_GAMMA), math.log(_LARGEST_GAMMA)
    for _ in range(40):
        middle = (low + high) / 2
        if float(shares @ levels ** math.exp(middle)) > target:
            low = middle
        else:
            high = middle
    if shares[0] + shares[255] == 1:
        return image.copy()  # black and white alone are the same under every gamma
    curve = np.round(255 * levels ** math.exp((low + high) / 2)).astype(np.uint8)
    return curve[image]


def histogram_equalise(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Spread the gray levels until each is about as frequent as any other.

    ``v' = (C(v) - C0) 255 / (n - C0)``, in float32 and rounded, where ``C(v)`` counts the pixels that are no brighter
    than ``v``, ``C0`` the darkest ones and ``n`` all: the formula of OpenCV's ``equalizeHist``. Any change of
    brightness or contrast that keeps the order of the levels is undone.

    Shape: (h, w) -> (h, w), uint8. A picture of one level stays as it is.

    Raises:
        InvalidInput: If the picture is not a gray one of uint8.

    Source: Gonzalez and Woods, "Digital Image Processing", section 3.3.

    >>> histogram_equalise(np.array([[10, 11], [11, 12]], np.uint8))
    array([[  0, 170],
           [170, 255]], dtype=uint8)
    """
    _check(image, (2,))
    counts = np.bincount(image.reshape(-1), minlength=256).cumsum()
    darkest = counts[counts > 0][0]
    if darkest == image.size:
        return image.copy()
    scale = np.float32(255) / np.float32(image.size - darkest)  # OpenCV's arithmetic, to the last rounding
    curve: NDArray[np.uint8] = np.rint((counts - darkest).clip(0).astype(np.float32) * scale).astype(np.uint8)
    return curve[image]


def emboss(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Relief as if lit from the lower right: correlation with a 3x3 kernel, clipped to 0 to 255.

    The kernel ``[[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]`` sums to one, so flat areas keep their brightness. The
    outermost pixels are repeated beyond the border.

    Shape: (h, w) or (h, w, 3) -> the same, uint8.

    Raises:
        InvalidInput: If the picture is not uint8 of such a shape.

    Source: Chap 2021, preprocessing ("emboss", no kernel given; this is the usual one).

    >>> emboss(np.full((2, 2), 9, np.uint8))
    array([[9, 9],
           [9, 9]], dtype=uint8)
    """
    _check(image, (2, 3))
    around = _neighbour_reader(image.astype(np.int32))
    relief = around(0, 0) + around(0, 1) + around(1, 0) + 2 * around(1, 1)
    relief -= around(0, -1) + around(-1, 0) + 2 * around(-1, -1)
    return relief.clip(0, 255).astype(np.uint8)


def local_binary_pattern(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The 8-bit pattern of which of eight neighbours are at least as bright as the pixel.

    ``LBP = sum over p of [g_p >= g_c] 2^p``, with the neighbours g_p on a circle of radius 1, p counted
    counter-clockwise from the right, and the four diagonal ones interpolated bilinearly. The outermost pixels
    are repeated beyond the border.

    Shape: (h, w) -> (h, w), uint8.

    Raises:
        InvalidInput: If the picture is not a gray one of uint8.

    Source: Ojala, Pietikäinen and Mäenpää, "Multiresolution gray-scale and rotation invariant texture
    classification with local binary patterns", TPAMI 2002, eq. (8) to (10), P = 8, R = 1. Chap 2021 names
    "local binary patterns" without parameters.

    >>> local_binary_pattern(np.array([[0, 0, 0], [0, 5, 9], [0, 0, 0]], np.uint8))[1, 1]
    np.uint8(1)
    """
    _check(image, (2,))
    centre = image.astype(np.int32)
    neighbour = _neighbour_reader(centre)
    side = math.sqrt(0.5)
    pattern = np.zeros(image.shape, np.uint8)
    steps = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
    for bit, (down, right) in enumerate(steps):
        excess: NDArray[np.floating] | NDArray[np.int32] = neighbour(down, right) - centre
        if down and right:
            # Bilinear at (1/sqrt 2, 1/sqrt 2), minus the centre: written in differences, flat areas are
            # exact.
            beside = neighbour(down, 0) + neighbour(0, right) - 2 * centre
            excess = side * side * excess + side * (1 - side) * beside
        pattern |= (excess >= 0).astype(np.uint8) << np.uint8(bit)
    return pattern


ILLUMINATION: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "gamma": gamma_equalise,
    "emboss": emboss,
    "lbp": local_binary_pattern,
    "histogram": histogram_equalise,
}
GRAY_ONLY = frozenset({"lbp", "histogram"})
"""Steps that colour pictures cannot take."""


def illuminate(image: NDArray[np.uint8], steps: Iterable[str]) -> NDArray[np.uint8]:
    """Apply steps of ``ILLUMINATION`` one after the other.

    Shape: (h, w) or (h, w, 3) -> the same, uint8.

    Raises:
        UnknownChoice: If a step is none of the table's.

    >>> illuminate(np.full((1, 1), 64, np.uint8), ["gamma", "emboss"])
    array([[127]], dtype=uint8)
    """
    for step in steps:
        image = choose(ILLUMINATION, step, "illumination")(image)
    return image


def _check(image: NDArray[np.uint8], axes: tuple[int, ...]) -> None:
    shapes = "(h, w) or (h, w, 3)" if 3 in axes else "(h, w)"
    shape_ok = image.ndim in axes and (image.ndim == 2 or image.shape[2] == 3)
    if image.dtype != np.uint8 or not shape_ok or image.size == 0:
        raise InvalidInput(f"expected a uint8 picture {shapes}; got {image.dtype} {image.shape}")


def _neighbour_reader(image: NDArray[np.int32]) -> Callable[[int, int], NDArray[np.int32]]:
    height, width = image.shape[:2]
    padded = np.pad(image, ((1, 1), (1, 1)) + ((0, 0),) * (image.ndim - 2), mode="edge")

    def neighbour(down: int, right: int) -> NDArray[np.int32]:
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    return neighbour
