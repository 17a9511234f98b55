import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ferattn.errors import InvalidOption
from ferattn.faces.framing import Framing, resize

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("framing", "shape", "expected"),
    [
        (Framing(112, 640), (48, 48), (112, 112)),
        (Framing(112, 640), (48, 96), (112, 224)),
        (Framing(112, 640), (200, 300), (200, 300)),
        (Framing(112, 640), (1000, 2000), (320, 640)),
        (Framing(112, 640), (1, 1000), (1, 640)),
        (Framing(96, 480, 0.25), (48, 48), (96, 96)),
        (Framing(10, 480, 0.25), (48, 48), (72, 72)),
    ],
)
def test_sizes(framing, shape, expected):
    framed, _ = framing.apply(np.zeros((*shape, 3), np.uint8))
    assert framed.shape == (*expected, 3)


@settings(deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    least=st.integers(1, 64),
    most=st.integers(64, 128),
    border=st.floats(0, 1),
)
def test_boxes_come_back_to_where_they_were(height, width, least, most, border):
    framed, placement = Framing(least, most, border).apply(np.zeros((height, width, 3), np.uint8))
    assert max(framed.shape[:2]) <= most
    pad = round(border * min(height, width))
    face = placement.back((0, 0, framed.shape[1], framed.shape[0]), 0.5, ((0, 0),) * 5)
    assert face.box == pytest.approx((-pad, -pad, width + 2 * pad, height + 2 * pad))
    assert face.landmarks[0] == pytest.approx((-pad, -pad))


def test_a_mark_is_found_where_it_was():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 30:50] = 255
    framed, placement = Framing(200, 640, 0.5).apply(image)
    rows, columns = np.nonzero(framed[..., 0] > 127)
    box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert placement.back(box, None).box == pytest.approx((30, 10, 20, 10), abs=0.5)


def test_resizing_is_pillows_antialiased_bilinear():
    image = RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    for height, width in ((20, 30), (99, 140), (50, 10)):
        pillow = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        assert np.abs(resize(image, height, width).astype(int) - np.asarray(pillow)).max() <= 1


@pytest.mark.parametrize("limits", [(0, 10), (10, 0), (20, 10), (1, 10, -0.1), (1, 10, 3)])
def test_impossible_limits_are_refused(limits):
    with pytest.raises(InvalidOption, match=r"min_side|max_side|border"):
        Framing(*limits)
