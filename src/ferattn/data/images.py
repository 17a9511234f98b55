"""From the bytes of an image file to 8-bit pixels, whatever the mode, or an error that names the file."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferattn.errors import InvalidInput, InvalidOption, choose

__all__ = ["FITS", "IMAGE_SUFFIXES", "decode", "is_image_name", "reshape_image"]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File name endings that are taken for images."""

FITS = ("stretch", "crop", "pad")
"""How an image is brought to another shape: distorted, cut at the longer side, or padded with black."""

# What Pillow's decoders are known to let out on damaged files, beside OSError.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    MemoryError,
    EOFError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
)


_lock = threading.Lock()
_caught = warnings.catch_warnings()
_readers = 0


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without warnings while any thread is inside.

    ``warnings.catch_warnings`` in each of several threads would restore what another one had set, for good. So may
    a ``catch_warnings`` elsewhere still that begins while images are read and ends later.
    """
    global _caught, _readers
    with _lock:
        if not _readers:
            _caught = warnings.catch_warnings()
            _caught.__enter__()
            warnings.simplefilter("ignore")
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                _caught.__exit__(None, None, None)


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image's.

    >>> is_image_name("KA.AN1.39.TIFF"), is_image_name("README.txt")
    (True, False)
    """
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def decode(data: bytes, name: str) -> NDArray[np.uint8]:
    """The pixels of an image file, upright.

    Grey images (1, 8 or 16 bits) come out as one plane, all others as RGB: palettes are looked up, CMYK is
    converted, an alpha channel is ignored, 16 bits are scaled to 8, the EXIF orientation is applied.

    Args:
        data: The file's content.
        name: The file's name, for the error message.

    Shape: (h, w) for grey, (h, w, 3) for colour.

    Raises:
        InvalidInput: If the bytes are no image, are truncated or damaged, or hold several frames or pages.
    """
    from PIL import Image, ImageOps

    try:
        # Pillow announces suspicious files by warnings (a decompression bomb, broken metadata). The first is
        # an error here; the second says nothing about the pixels.
        with _without_warnings(), Image.open(io.BytesIO(data)) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise InvalidInput(f"{name}: {image.width} x {image.height} are too many pixels for an image.")
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # the second picture in a phone's JPEG is no other frame
                raise InvalidInput(f"{name}: holds {frames} frames or pages; an image of one frame is needed.")
            image.load()
            return _eight_bit(ImageOps.exif_transpose(image), name)
    except InvalidInput:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidInput(f"{name}: too many pixels for an image ({error}).") from error
    except _DECODER_ERRORS as error:
        reason = str(error).replace(repr(data), "").split("<_io")[0].strip() or type(error).__name__
        raise InvalidInput(f"{name}: not a readable image ({reason}).") from error


def _eight_bit(image: Any, name: str) -> NDArray[np.uint8]:
    mode = image.mode
    if mode == "F":
        raise InvalidInput(f"{name}: floating-point pixels (mode F) have no agreed range; save it as 8 or 16 bits.")
    if mode == "I" or mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        if wide.size and (wide.min() < 0 or wide.max() > 65535):
            raise InvalidInput(f"{name}: pixels from {wide.min()} to {wide.max()} do not fit 16 bits (mode {mode}).")
        return ((wide + 128) // 257).astype(np.uint8)
    if mode in ("L", "1", "LA", "La"):
        return np.array(image.convert("L"), dtype=np.uint8)
    if mode == "P" and image.getpalette() is not None:
        rgb = np.array(image.convert("RGBA").convert("RGB"), dtype=np.uint8)
        return rgb[..., 0].copy() if _is_grey(rgb) else rgb
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _is_grey(rgb: NDArray[np.uint8]) -> bool:
    return bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all())


def reshape_image(
    pixels: NDArray[np.uint8], size: tuple[int, int] | None, channels: int, fit: str = "stretch"
) -> NDArray[np.uint8]:
    """The same picture with the wanted number of channels and pixels.

    Args:
        pixels: Shape (h, w) or (h, w, 3).
        size: Height and width wanted; None keeps the picture's own.
        channels: 1 (grey: 0.299 R + 0.587 G + 0.114 B) or 3.
        fit: One of ``FITS``; matters only where the aspect ratio changes.

    Shape: (channels, height, width)

    Raises:
        InvalidOption: If ``channels`` is neither 1 nor 3, or a side of ``size`` is not positive.
        UnknownChoice: If ``fit`` is not one of ``FITS``.

    >>> reshape_image(np.zeros((48, 40), np.uint8), (80, 80), 3).shape
    (3, 80, 80)
    """
    from PIL import Image, ImageOps

    choose({name: name for name in FITS}, fit, "fit")
    if channels not in (1, 3):
        raise InvalidOption(f"channels={channels!r}: an image has 1 (grey) or 3 (RGB).")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise InvalidOption(f"size={size!r}: height and width must be positive.")
    mode = "L" if channels == 1 else "RGB"
    same_size = size is None or tuple(size) == pixels.shape[:2]
    if not same_size or (pixels.ndim == 2) != (channels == 1):
        image = Image.fromarray(pixels).convert(mode)
        if not same_size and size is not None:
            width_first = (size[1], size[0])
            if fit == "stretch":
                image = image.resize(width_first, Image.Resampling.BILINEAR)
            elif fit == "crop":
                image = ImageOps.fit(image, width_first, Image.Resampling.BILINEAR)
            else:
                image = ImageOps.pad(image, width_first, Image.Resampling.BILINEAR)
        pixels = np.array(image, dtype=np.uint8)
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(planes)
