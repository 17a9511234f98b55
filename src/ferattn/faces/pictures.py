"""From whatever a user has to one upright RGB array.

What is converted, and how:

- EXIF orientation is applied (files, bytes and PIL pictures);
- an animation or a multi-page file is refused: which of its pictures is meant is not for us to say (the second
  picture that many phones put into a JPEG does not count);
- transparency (palette, LA, RGBA) is laid over white;
- 16 bits per channel are scaled to 8 over the full range (65535 becomes 255); 12-bit data in a 16-bit file
  therefore comes out dark;
- floating point numbers are read as 0 to 1; CMYK, palette, 1-bit and other modes go through Pillow's
  conversion.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
import torch
from numpy.typing import NDArray

from ferattn.errors import InvalidInput, InvalidOption, MissingDependency, UnknownChoice, choose

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Channels", "Picture", "png_bytes", "read_picture", "to_gray"]

Channels = Literal["rgb", "bgr"]
Picture = Union[str, "os.PathLike[str]", bytes, "Image.Image", NDArray[Any], torch.Tensor]

_ORDERS = {"rgb": (0, 1, 2), "bgr": (2, 1, 0)}


def read_picture(image: Picture, *, channels: Channels | None = None) -> NDArray[np.uint8]:
    """Read a picture from a path, the bytes of a file, PIL, NumPy or a tensor.

    Args:
        image: A path, the content of a picture file, a PIL picture, an array (h, w), (h, w, 1), (h, w, 3) or
            (h, w, 4), or a tensor (h, w) or (c, h, w) with 1, 3 or 4 channels. Arrays and tensors hold uint8,
            uint16, booleans, or floats from 0 to 1.
        channels: The order of the channels, ``"rgb"`` or ``"bgr"``. It must be said for a colour array,
            because OpenCV and everyone else disagree; a tensor is RGB unless said; a file or PIL picture
            knows its own.

    Shape: returns (h, w, 3), uint8, RGB. What is so already is returned as it is, not as a copy.

    Raises:
        InvalidInput: If the picture cannot be read or has an impossible shape, type or value.
        InvalidOption: If ``channels`` is missing for a colour array, or given for a file or PIL picture.
        UnknownChoice: If ``channels`` is neither ``"rgb"`` nor ``"bgr"``.
        MissingDependency: If Pillow is needed and not installed.

    >>> read_picture(np.zeros((4, 6, 3), np.uint8), channels="bgr").shape
    (4, 6, 3)
    """
    if channels is not None:
        choose(_ORDERS, channels, "channels")
    if isinstance(image, torch.Tensor):
        return _from_array(_channels_last(image), channels or "rgb", "tensor")
    if isinstance(image, np.ndarray):
        return _from_array(image, channels, "array")
    if channels is not None:
        raise InvalidOption(
            f"channels={channels!r} is for arrays and tensors; a file or a PIL picture knows its own order"
        )
    return _from_pillow(image)


def to_gray(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luma of an RGB picture, 0.299 R + 0.587 G + 0.114 B rounded.

    Shape: (h, w, 3) -> (h, w).

    Source: ITU-R BT.601.

    >>> to_gray(np.full((1, 1, 3), 7, np.uint8))
    array([[7]], dtype=uint8)
    """
    # In integers, because 0.299 + 0.587 + 0.114 in floats can turn a gray of 7 into 6.
    red, green, blue = (image[..., i].astype(np.uint32) for i in range(3))
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)


def _channels_last(image: torch.Tensor) -> NDArray[Any]:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[0] not in (1, 3, 4)):
        raise InvalidInput(
            f"a tensor picture is (h, w) or (c, h, w) with 1, 3 or 4 channels; got {tuple(image.shape)}"
            + ("; pass the pictures of a batch one by one" if image.ndim == 4 else "")
        )
    image = image.detach().cpu()
    if image.dtype == torch.bfloat16:
        image = image.float()
    return np.asarray(image.numpy() if image.ndim == 2 else image.permute(1, 2, 0).numpy())


def _from_array(array: NDArray[Any], channels: Channels | None, what: str) -> NDArray[np.uint8]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = "; channels come last in an array" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise InvalidInput(
            f"an array picture is (h, w) or (h, w, c) with 1, 3 or 4 channels; got {array.shape}{hint}"
        )
    if array.size == 0:
        raise InvalidInput(f"the {what} holds no pixels: its shape is {array.shape}")
    if array.ndim == 3 and array.shape[2] >= 3 and channels is None:
        raise InvalidOption('a colour array needs channels="rgb" or channels="bgr" (OpenCV reads BGR)')
    pixels = _to_uint8(array, what)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    rgb = pixels[..., :3] if channels != "bgr" else pixels[..., 2::-1]
    return _over_white(rgb, pixels[..., 3:]) if pixels.shape[2] == 4 else np.ascontiguousarray(rgb)


def _to_uint8(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise InvalidInput(f"{what}: floats go from 0 to 1; this goes from {low:g} to {high:g}")
        return np.round(array.astype(np.float64) * 255).astype(np.uint8)
    raise InvalidInput(
        f"{what}: a picture holds uint8, uint16, bool or floats from 0 to 1; this one holds {array.dtype}"
    )


def _over_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    opacity = alpha.astype(np.uint32)
    return ((rgb * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def _from_pillow(source: Any) -> NDArray[np.uint8]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingDependency('reading pictures needs Pillow: pip install "ferattn[faces]"') from error
    if isinstance(source, Image.Image):
        name = "the PIL picture"
    elif isinstance(source, bytes):
        name = f"the picture ({len(source)} bytes)"
    elif isinstance(source, (str, os.PathLike)):
        name = f"{os.fspath(source)!r}"
    else:
        raise InvalidInput(
            "a picture is a path, bytes, a PIL picture, a NumPy array or a tensor; "
            f"got {type(source).__module__}.{type(source).__qualname__}"
        )
    try:
        if isinstance(source, Image.Image):
            return _pixels(ImageOps.exif_transpose(source), name)
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            if getattr(opened, "is_animated", False) and opened.format != "MPO":
                raise InvalidInput(f"{name} holds {getattr(opened, 'n_frames', 2)} pictures; give one of them")
            opened.load()
            return _pixels(ImageOps.exif_transpose(opened), name)
    except (InvalidInput, UnknownChoice):
        raise
    except FileNotFoundError as error:
        raise InvalidInput(f"there is no picture at {name}") from error
    except IsADirectoryError as error:
        raise InvalidInput(f"{name} is a folder, not a picture") from error
    except Exception as error:
        # Pillow's decoders raise nearly every built-in exception on hostile bytes (OSError, SyntaxError,
        # struct.error, zlib.error, IndexError, DecompressionBombError, ...); all mean the same to the user.
        told = str(error).partition(" <_io.BytesIO")[0]  # Pillow prints where in memory the bytes lie
        reason = f"{type(error).__name__}: {told}" if told else type(error).__name__
        raise InvalidInput(f"cannot read {name} as a picture: {reason}") from error


def _pixels(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if 0 in image.size:
        raise InvalidInput(f"{name} holds no pixels: its size is {image.size}")
    if image.mode.startswith("I"):
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 65535:
            raise InvalidInput(f"{name} has integers outside 16 bits: {array.min()} to {array.max()}")
        return _from_array(array.astype(np.uint16), None, name)
    if image.mode == "F":
        return _from_array(np.asarray(image), None, name)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = np.asarray(straight.convert("RGBA"))
        return _over_white(rgba[..., :3], rgba[..., 3:])
    return np.array(image.convert("RGB"))


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """A picture, (h, w) or (h, w, 3), as the content of a PNG file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency('writing crops needs Pillow: pip install "ferattn[faces]"') from error
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
