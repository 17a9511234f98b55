import io
import threading
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.trees import noise, png
from ferattn.data import images
from ferattn.data.images import decode, reshape_image
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


GREY = noise(0, 5, 7)
COLOUR = noise(1, 5, 7, 3)


def test_grey_and_colour_come_out_as_they_went_in():
    assert np.array_equal(decode(png(GREY), "a"), GREY)
    assert np.array_equal(decode(png(COLOUR), "a"), COLOUR)
    assert decode(png(noise(0, 1, 1)), "a").shape == (1, 1)


def test_sixteen_bits_are_scaled_not_cut():
    wide = (GREY.astype(np.uint16) * 257).astype(np.uint16)
    assert np.array_equal(decode(encoded(Image.fromarray(wide)), "a"), GREY)
    assert np.array_equal(decode(encoded(Image.fromarray(wide), "TIFF"), "a"), GREY)


def test_palette_alpha_cmyk_and_one_bit():
    palette = Image.fromarray(COLOUR).quantize(16)
    assert np.array_equal(decode(encoded(palette), "a"), np.array(palette.convert("RGB")))
    grey_gif = decode(encoded(Image.fromarray(GREY), "GIF"), "a")
    assert np.array_equal(grey_gif, GREY)
    alpha = np.dstack([COLOUR, noise(2, 5, 7)])
    assert np.array_equal(decode(png(alpha), "a"), COLOUR)
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    assert decode(encoded(cmyk, "JPEG", quality=100), "a").shape == (5, 7, 3)
    bits = Image.fromarray(GREY > 127)
    assert np.array_equal(decode(encoded(bits), "a"), np.where(GREY > 127, 255, 0))


def test_the_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise
    assert np.array_equal(decode(encoded(Image.fromarray(GREY), exif=exif), "a"), np.rot90(GREY, -1))


def test_animations_floats_and_wide_integers_are_refused_by_name():
    frames = [Image.fromarray(noise(seed, 4, 4)) for seed in range(3)]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidInput, match=r"moving\.gif: holds 3 frames"):
        decode(animated, "moving.gif")
    phone = encoded(Image.fromarray(noise(0, 4, 4)), "MPO", save_all=True, append_images=frames[1:2])
    assert decode(phone, "phone.jpg").shape[:2] == (4, 4)  # its second picture is no other frame
    with pytest.raises(InvalidInput, match=r"f\.tiff: floating-point"):
        decode(encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"), "f.tiff")
    with pytest.raises(InvalidInput, match=r"i\.tiff: pixels from -5"):
        decode(encoded(Image.fromarray(np.full((3, 3), -5, np.int32)), "TIFF"), "i.tiff")


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(InvalidInput, match="too many pixels"):
        decode(png(GREY), "bomb.png")


def test_threads_leave_the_filters_of_warnings_as_they_were(monkeypatch):
    """The first that begins ends first, the second after it: each is inside while the other begins."""
    inside, begun, ended = (threading.Event() for _ in range(3))
    eight_bit, before = images._eight_bit, list(warnings.filters)

    def slow(image, name):
        if name == "first.png":
            inside.set()
            assert begun.wait(30)
        else:
            begun.set()
            assert ended.wait(30)
        return eight_bit(image, name)

    def first():
        decode(png(GREY), "first.png")
        ended.set()

    monkeypatch.setattr(images, "_eight_bit", slow)
    threads = [threading.Thread(target=first), threading.Thread(target=decode, args=(png(GREY), "second.png"))]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert ended.is_set()
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", stacklevel=1)


FORMATS = [encoded(Image.fromarray(COLOUR), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_files_give_an_image_or_one_error_with_their_name(content, data):
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for attempt in (bytes(damaged), bytes(damaged[:cut])):
        try:
            pixels = decode(attempt, "some/file.png")
        except InvalidInput as error:
            message = str(error)
        else:
            message = "some/file.png"
            assert pixels.dtype == np.uint8
            assert pixels.ndim in (2, 3)
        assert "some/file.png" in message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
@example(b"")
def test_anything_that_is_no_image_is_an_error(content):
    with pytest.raises(InvalidInput, match="file"):
        decode(content, "file")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_truncated_files_are_errors(kind):
    content = encoded(Image.fromarray(noise(3, 40, 40)), kind)
    with pytest.raises(InvalidInput, match="half"):
        decode(content[: len(content) // 2], "half")


def test_reshaping_changes_channels_size_and_fit():
    assert np.array_equal(reshape_image(GREY, None, 1), GREY[None])
    assert np.array_equal(reshape_image(GREY, None, 3), np.stack([GREY] * 3))
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert reshape_image(red, None, 1).max() == 76  # 0.299 x 255
    wide = np.full((4, 8), 200, np.uint8)
    assert (reshape_image(wide, (8, 8), 1) == 200).all()
    padded = reshape_image(wide, (8, 8), 1, "pad")
    assert (padded[0, 2:6] == 200).all()
    assert (padded[0, :2] == 0).all()
    halves = np.hstack([np.zeros((4, 2), np.uint8), np.full((4, 4), 9, np.uint8), np.zeros((4, 2), np.uint8)])
    assert (reshape_image(halves, (4, 4), 1, "crop") == 9).all()


def test_impossible_shapes_are_refused():
    with pytest.raises(UnknownChoice, match="fit 'pda'; did you mean 'pad'"):
        reshape_image(GREY, None, 1, "pda")
    with pytest.raises(InvalidOption, match="channels=2"):
        reshape_image(GREY, None, 2)
    with pytest.raises(InvalidOption, match="size"):
        reshape_image(GREY, (0, 5), 1)
