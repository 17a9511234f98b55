import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ferattn.errors import InvalidInput, InvalidOption, MissingDependency, UnknownChoice
from ferattn.faces import read_picture
from ferattn.faces.pictures import to_gray

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def test_every_door_gives_the_same_picture(tmp_path):
    data = encoded(Image.fromarray(RGB), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    for given_as in (path, str(path), data, Image.fromarray(RGB), tensor, tensor.float() / 255):
        np.testing.assert_array_equal(read_picture(given_as), RGB)
    np.testing.assert_array_equal(read_picture(RGB, channels="rgb"), RGB)
    np.testing.assert_array_equal(read_picture(RGB[..., ::-1], channels="bgr"), RGB)
    np.testing.assert_array_equal(read_picture(tensor.flip(0), channels="bgr"), RGB)


def test_the_channel_order_must_be_said_for_arrays_and_only_there():
    with pytest.raises(InvalidOption, match='channels="rgb" or channels="bgr"'):
        read_picture(RGB)
    with pytest.raises(InvalidOption, match="knows its own"):
        read_picture(Image.fromarray(RGB), channels="rgb")
    with pytest.raises(UnknownChoice, match="did you mean"):
        read_picture(RGB, channels="brg")


def test_gray_arrays_and_other_types():
    gray = RGB[..., 0]
    expected = np.repeat(gray[..., None], 3, axis=2)
    for array in (gray, gray[..., None], gray.astype(np.uint16) * 257, gray / 255, (gray / 255).astype("f4")):
        np.testing.assert_array_equal(read_picture(array), expected)
    np.testing.assert_array_equal(read_picture(torch.from_numpy(gray)), expected)
    assert set(np.unique(read_picture(gray > 99))) == {0, 255}
    assert read_picture(torch.rand(3, 4, 5, dtype=torch.bfloat16, requires_grad=True)).shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((0, 5), np.uint8), "no pixels"),
        (np.zeros((2, 3, 5), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((3, 20, 20), np.uint8), "channels come last"),
        (np.zeros(7, np.uint8), "array picture"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.full((4, 4), 255.0), "goes from 255 to 255"),
        (np.full((4, 4), np.nan), "nan"),
        (np.zeros((4, 4), np.complex64), "complex64"),
        (torch.zeros(2, 3, 4, 4), "one by one"),
        (torch.zeros(5, 4, 4), "tensor picture"),
        (b"", "cannot read"),
        (42, "builtins.int"),
        ("", "folder"),
        ("no/such.png", "there is no picture"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    with pytest.raises(InvalidInput, match=message):
        read_picture(picture)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    upright = np.zeros((8, 4, 3), np.uint8)
    upright[:4, :2] = 255
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "PNG", exif=exif)
    np.testing.assert_array_equal(read_picture(data), upright)
    np.testing.assert_array_equal(read_picture(Image.open(io.BytesIO(data))), upright)


def test_a_users_pil_picture_is_left_alone():
    image = Image.fromarray(RGB).convert("P")
    before = image.mode, image.size, image.tobytes()
    read_picture(image)
    assert (image.mode, image.size, image.tobytes()) == before


def test_16_bits_are_scaled_over_the_full_range():
    deep = np.array([[0, 257, 65535, 32768]], np.uint16)
    expected = [0, 1, 255, 128]
    assert read_picture(deep)[0, :, 0].tolist() == expected
    for kind in ("PNG", "TIFF"):
        assert read_picture(encoded(Image.fromarray(deep), kind))[0, :, 0].tolist() == expected
    assert read_picture(Image.fromarray(deep.astype(np.int32)))[0, :, 0].tolist() == expected
    with pytest.raises(InvalidInput, match="outside 16 bits"):
        read_picture(Image.fromarray(np.array([[-1]], np.int32)))


def test_floating_point_tiff():
    assert read_picture(Image.fromarray(np.array([[0.0, 1.0]], np.float32)))[0, :, 0].tolist() == [0, 255]
    with pytest.raises(InvalidInput, match="0 to 1"):
        read_picture(Image.fromarray(np.array([[0.0, 9.0]], np.float32)))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "La", "RGBa"])
def test_transparency_is_laid_over_white(mode):
    image = Image.fromarray(np.array([[[10, 10, 10, 255], [10, 10, 10, 0]]], np.uint8), "RGBA")
    converted = image.convert("LA").convert(mode) if mode == "La" else image.convert(mode)
    assert converted.mode == mode
    assert read_picture(converted)[0, :, 0].tolist() == [10, 255]


def test_transparency_of_palettes_and_arrays():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 10, 10, 200, 0, 0])
    image.putpixel((1, 0), 1)
    data = encoded(image, "PNG", transparency=0)
    assert read_picture(data).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    assert read_picture(encoded(image, "PNG")).tolist() == [[[10, 10, 10], [200, 0, 0]]]
    half = np.array([[[255, 0, 0, 128]]], np.uint8)
    assert read_picture(half, channels="rgb").tolist() == [[[255, 127, 127]]]
    assert read_picture(half, channels="bgr").tolist() == [[[127, 127, 255]]]


def test_cmyk_one_bit_and_animation():  # and multi-page files
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert read_picture(encoded(red.convert("CMYK"), "TIFF"))[0, 0].tolist() == [255, 0, 0]
    assert read_picture(encoded(Image.new("1", (3, 3), 1), "PNG"))[0, 0].tolist() == [255, 255, 255]
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    pages = encoded(frames[1], "TIFF", save_all=True, append_images=frames[2:])
    for several, count in ((data, 3), (pages, 2)):
        with pytest.raises(InvalidInput, match=f"holds {count} pictures; give one of them"):
            read_picture(several)
    assert read_picture(frames[0])[0, 0].tolist() == [255, 0, 0]
    phone = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:2])
    assert read_picture(phone)[0, 0].tolist()[0] > 250


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_files_are_errors_that_name_the_file(tmp_path, kind):
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    path = tmp_path / "cut.png"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InvalidInput, match=r"cut\.png"):
        read_picture(path)


def test_a_bomb_is_refused():
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(InvalidInput, match="DecompressionBomb"):
        read_picture(bomb)


KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
HEADS = [encoded(Image.fromarray(RGB), kind)[:cut] for kind in KINDS for cut in (8, 30)]


@settings(max_examples=200, deadline=None)
@given(head=st.sampled_from([b"", *HEADS]), tail=st.binary(max_size=300))
def test_random_bytes_are_a_picture_or_our_error(head, tail):
    with contextlib.suppress(InvalidInput):
        assert read_picture(head + tail).dtype == np.uint8


WHOLE = [encoded(Image.fromarray(RGB), kind) for kind in KINDS]


@settings(max_examples=200, deadline=None)
@given(data=st.sampled_from(WHOLE), position=st.floats(0, 1), patch=st.binary(min_size=1, max_size=8))
def test_damaged_files_are_a_picture_or_our_error(data, position, patch):
    at = int(position * len(data))
    with contextlib.suppress(InvalidInput):
        assert read_picture(data[:at] + patch + data[at + len(patch) :]).ndim == 3


@settings(deadline=None)
@given(st.integers(0, 255))
def test_gray_stays_gray(level):
    assert to_gray(np.full((1, 1, 3), level, np.uint8)).item() == level


def test_luma_is_pillows_up_to_rounding():
    image = RNG.integers(0, 256, (50, 50, 3), dtype=np.uint8)
    assert np.abs(to_gray(image).astype(int) - np.asarray(Image.fromarray(image).convert("L"))).max() <= 1


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingDependency, match=r"ferattn\[faces\]"):
        read_picture(b"x")
