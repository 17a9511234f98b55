import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.data import astronaut

from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice
from ferattn.faces import Face, crop, crops
from ferattn.faces.pictures import read_picture, to_gray

RNG = np.random.default_rng(0)
GRAY = to_gray(astronaut())
TILTED = Face((100, 60, 80, 100), 0.9, ((120, 100), (160, 120), (135, 120), (115, 140), (150, 150)))


def plain(image, box, size, **options):
    return crop(image, Face(box), size, **{"margin": 0.0, "channels": None, **options})


def test_a_square_box_of_the_right_size_is_a_slice():
    np.testing.assert_array_equal(plain(GRAY, (100, 60, 80, 80), 80), GRAY[60:140, 100:180])
    colour = plain(astronaut(), (100, 60, 80, 80), 80, color="rgb", channels="rgb")
    np.testing.assert_array_equal(colour, astronaut()[60:140, 100:180])


def test_shrinking_is_antialiased_and_enlarging_bilinear_as_in_pillow():
    part = Image.fromarray(GRAY[60:260, 100:300])
    for size in (64, 48, 10):
        expected = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(plain(GRAY, (100, 60, 200, 200), size).astype(int) - expected).max() <= 1
    enlarged = np.asarray(Image.fromarray(GRAY[60:108, 100:148]).resize((80, 80), Image.Resampling.BILINEAR))
    ours = plain(GRAY, (100, 60, 48, 48), 80).astype(int)
    assert np.abs(ours - enlarged)[2:-2, 2:-2].max() <= 1  # at the rim ours sees the pixels beyond


def test_turning_is_scipys_interpolation():
    angle = math.atan2(20, 40)
    steps = np.arange(200) + 0.5 - 100
    across, down = np.meshgrid(steps, steps)
    x = 140 + across * math.cos(angle) - down * math.sin(angle)
    y = 110 + across * math.sin(angle) + down * math.cos(angle)
    expected = scipy.ndimage.map_coordinates(GRAY.astype(float), [y - 0.5, x - 0.5], order=1, mode="nearest")
    face = Face((40, 10, 200, 200), None, TILTED.landmarks)
    assert np.abs(crop(GRAY, face, 200, margin=0.0) - expected).max() <= 1


def test_alignment_levels_the_eyes():
    image = np.zeros((200, 260), np.uint8)
    for x, y in ((120, 100), (160, 120)):
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
    for align, difference in ((True, 0.0), (False, 20.0)):
        out = crop(image, TILTED, 100, margin=0.0, align=align)
        labels, _ = scipy.ndimage.label(out > 60)
        (row_a, _), (row_b, _) = scipy.ndimage.center_of_mass(out, labels, [1, 2])
        assert abs(row_b - row_a) == pytest.approx(difference, abs=1)


def test_alignment_does_nothing_without_landmarks():
    face = Face(TILTED.box)
    np.testing.assert_array_equal(crop(GRAY, face, align=True), crop(GRAY, face, align=False))


def test_upside_down_faces_are_turned_upright():
    rotated = np.ascontiguousarray(GRAY[::-1, ::-1])
    height, width = GRAY.shape
    box = TILTED.box
    turned = Face(
        (width - box[0] - box[2], height - box[1] - box[3], box[2], box[3]),
        None,
        tuple((width - x, height - y) for x, y in TILTED.landmarks),
    )
    difference = crop(rotated, turned).astype(int) - crop(GRAY, TILTED)
    assert np.abs(difference).max() <= 1


def test_margin_adds_its_share_of_the_box_on_every_side():
    np.testing.assert_array_equal(
        crop(GRAY, Face((100, 60, 80, 80)), 80, margin=0.25), plain(GRAY, (80, 40, 120, 120), 80)
    )
    np.testing.assert_array_equal(
        crop(GRAY, Face((100, 60, 80, 80)), 40, margin=-0.25), plain(GRAY, (120, 80, 40, 40), 40)
    )


def test_a_square_shows_more_of_the_picture_and_a_box_is_padded():
    box = (100, 60, 40, 80)
    np.testing.assert_array_equal(plain(GRAY, box, 80), GRAY[60:140, 80:160])
    padded = plain(GRAY, box, 80, square=False, padding="black")
    np.testing.assert_array_equal(padded[:, 20:60], GRAY[60:140, 100:140])
    assert not padded[:, :20].any()
    assert not padded[:, 60:].any()
    repeated = plain(GRAY, box, 80, square=False)
    np.testing.assert_array_equal(repeated[:, :20], np.repeat(GRAY[60:140, 100:101], 20, axis=1))


def test_beyond_the_border_is_padding_and_not_distortion():
    image = RNG.integers(1, 256, (40, 40), dtype=np.uint8)
    black = plain(image, (-10, -10, 40, 40), 40, padding="black")
    np.testing.assert_array_equal(black[10:, 10:], image[:30, :30])
    assert not black[:10].any()
    edge = plain(image, (-10, -10, 40, 40), 40)
    np.testing.assert_array_equal(edge, np.pad(image, ((10, 0), (10, 0)), mode="edge")[:40, :40])


def test_colour_and_gray():
    colour = crop(astronaut(), TILTED, color="rgb", channels="rgb")
    gray = crop(astronaut(), TILTED, channels="rgb")
    assert colour.shape == (80, 80, 3)
    assert gray.shape == (80, 80)
    assert np.abs(to_gray(colour).astype(int) - gray).max() <= 1
    swapped = crop(astronaut()[..., ::-1], TILTED, color="rgb", channels="bgr")
    np.testing.assert_array_equal(swapped, colour)
    tensor = torch.from_numpy(astronaut()).permute(2, 0, 1)
    np.testing.assert_array_equal(crop(tensor, TILTED), gray)


def test_exif_orientation_reaches_the_crop(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(np.rot90(GRAY))).save(path, exif=exif)
    np.testing.assert_array_equal(crop(path, TILTED), crop(GRAY, TILTED))


BOXES = st.tuples(st.floats(-20, 40), st.floats(-20, 25), st.floats(21, 90), st.floats(21, 90))


@settings(deadline=None)
@given(
    box=BOXES,
    size=st.integers(1, 40),
    margin=st.floats(-0.4, 1),
    square=st.booleans(),
    level=st.integers(0, 255),
)
def test_a_flat_picture_gives_a_flat_crop_of_the_asked_size(box, size, margin, square, level):
    image = np.full((30, 50), level, np.uint8)
    out = crop(image, Face(box), size, margin=margin, square=square)
    assert out.shape == (size, size)
    assert (out == level).all()


@settings(deadline=None)
@given(box=BOXES, angle=st.floats(-3, 3), size=st.integers(2, 40))
def test_mirroring_the_picture_mirrors_the_crop(box, angle, size):
    image = np.random.default_rng(1).integers(0, 256, (30, 50), dtype=np.uint8)
    x, y, width, height = box
    points = [(0.0, 0.0), (math.cos(angle), math.sin(angle)), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)]
    mirrored = [(50 - px, py) for px, py in (points[1], points[0], *points[2:])]
    ours = crop(image, Face(box, None, tuple(points)), size)
    other = crop(image[:, ::-1].copy(), Face((50 - x - width, y, width, height), None, tuple(mirrored)), size)
    assert np.abs(other[:, ::-1].astype(int) - ours).max() <= 1


def test_a_face_costs_its_own_pixels_and_not_the_pictures(monkeypatch):
    seen = []
    monkeypatch.setitem(crops.COLORS, "gray", lambda part: seen.append(part.shape) or to_gray(part))
    whole = RNG.integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    face = Face((500, 300, 60, 80))
    for picture, order in ((whole, "rgb"), (np.ascontiguousarray(whole[..., ::-1]), "bgr")):
        found = crop(picture, face, 48, channels=order)
        assert np.array_equal(found, crop(Image.fromarray(to_gray(whole)), face, 48))
    assert max(max(shape[:2]) for shape in seen[::2]) < 120
    assert np.shares_memory(read_picture(whole, channels="rgb"), whole)
    whole.flags.writeable = False  # as of a file that is mapped into memory
    wide = Face((0, 0, 1200, 900))
    assert np.array_equal(
        crop(whole, wide, color="rgb", channels="rgb"), crop(whole.copy(), wide, color="rgb", channels="rgb")
    )


def test_a_single_pixel_and_an_absurd_box():
    assert (crop(np.full((1, 1), 9, np.uint8), Face((0, 0, 1, 1))) == 9).all()
    huge = crop(np.full((4, 4), 9, np.uint8), Face((-1e6, -1e6, 2e6 + 4, 2e6 + 4)), 16, padding="black")
    assert huge.shape == (16, 16)


@pytest.mark.parametrize("box", [(60, 0, 5, 5), (0, 60, 5, 5), (-9, 0, 9, 5), (0, -9, 5, 9)])
def test_a_face_outside_the_picture_is_refused(box):
    with pytest.raises(InvalidInput, match="outside the picture of 50x40"):
        crop(np.zeros((40, 50), np.uint8), Face(box))


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"size": 0}, InvalidOption),
        ({"size": 10**6}, InvalidOption),
        ({"size": 8.0}, InvalidOption),
        ({"margin": -0.5}, InvalidOption),
        ({"margin": math.nan}, InvalidOption),
        ({"color": "grey"}, UnknownChoice),
        ({"padding": "edges"}, UnknownChoice),
    ],
)
def test_impossible_options(option, error):
    with pytest.raises(error, match=next(iter(option))):
        crop(GRAY, TILTED, **option)
