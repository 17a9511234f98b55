import cv2
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.color import rgb2gray
from skimage.data import astronaut
from skimage.feature import local_binary_pattern as skimage_lbp

from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice
from ferattn.faces import (
    ILLUMINATION,
    emboss,
    gamma_equalise,
    histogram_equalise,
    illuminate,
    local_binary_pattern,
)

RNG = np.random.default_rng(0)
GRAY = np.round(rgb2gray(astronaut()) * 255).astype(np.uint8)
PICTURES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7])
def test_gamma_reaches_its_target(target):
    for image in (GRAY, GRAY // 2, 255 - GRAY // 2, astronaut()):
        grayer = image.clip(10, 245)  # black and white stay what they are, and limit the reach
        assert gamma_equalise(grayer, target).mean() / 255 == pytest.approx(target, abs=0.003)


@pytest.mark.parametrize("gamma", [0.5, 0.8, 1.5, 2.2])
def test_gamma_undoes_the_gamma_a_picture_was_taken_with(gamma):
    changed = np.round(255 * (GRAY / 255) ** gamma).astype(np.uint8)
    difference = gamma_equalise(changed).astype(int) - gamma_equalise(GRAY)
    assert np.abs(difference[GRAY > 60]).max() <= 4


@example(np.repeat([3, 4, 5], [1, 7, 7]).astype(np.uint8)[None])  # 127.5: in float32 below a half
@given(PICTURES)
def test_histogram_equalisation_is_that_of_opencv(image):
    assert np.array_equal(histogram_equalise(image), cv2.equalizeHist(image))


def test_histogram_equalisation_undoes_brightness_and_contrast():
    changed = np.round(40 + 100 * (GRAY / 255) ** 0.7).astype(np.uint8)
    difference = histogram_equalise(changed).astype(int) - histogram_equalise(GRAY)
    assert np.abs(difference).max() <= 8  # 256 levels had become 101


def test_gamma_is_a_power_of_the_brightness():
    out = gamma_equalise(GRAY).astype(float) / 255
    inner = (GRAY > 40) & (GRAY < 215)
    slopes = np.log(out[inner]) / np.log(GRAY[inner] / 255)
    assert slopes.std() < 0.02 * slopes.mean()


@settings(deadline=None)
@given(PICTURES)
def test_gamma_keeps_order_black_and_white(image):
    out = gamma_equalise(image)
    assert out.shape == image.shape
    by_level = np.argsort(image, axis=None)
    assert (np.diff(out.reshape(-1)[by_level].astype(int)) >= 0).all()
    assert (out[image == 0] == 0).all()
    assert (out[image == 255] == 255).all()


def test_gamma_stops_at_8():
    bright = 255 - GRAY // 4
    np.testing.assert_array_equal(gamma_equalise(bright, 0.1), np.round(255 * (bright / 255) ** 8))


def test_gamma_leaves_black_and_white_alone_and_does_not_blow_up_noise():
    for flat in (np.zeros((3, 3), np.uint8), np.full((3, 3), 255, np.uint8)):
        np.testing.assert_array_equal(gamma_equalise(flat), flat)
    nearly_white = np.full((3, 3), 254, np.uint8)
    assert gamma_equalise(nearly_white).min() >= 246


@pytest.mark.parametrize("target", [0, 1, -1, 2])
def test_gamma_target_is_between_black_and_white(target):
    with pytest.raises(InvalidOption, match="target"):
        gamma_equalise(GRAY, target)


KERNEL = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


@settings(deadline=None)
@given(PICTURES)
def test_emboss_is_scipys_correlation(image):
    expected = scipy.ndimage.correlate(image.astype(int), KERNEL, mode="nearest").clip(0, 255)
    np.testing.assert_array_equal(emboss(image), expected)


def test_emboss_is_opencvs_filter_in_colour():
    expected = cv2.filter2D(astronaut(), -1, KERNEL.astype(float), borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_array_equal(emboss(astronaut()), expected)


@pytest.mark.parametrize("image", [GRAY, RNG.integers(0, 256, (60, 70), dtype=np.uint8)])
def test_patterns_are_scikit_images(image):
    expected = skimage_lbp(image, P=8, R=1, method="default").astype(np.uint8)
    ours = local_binary_pattern(image)
    differ = (ours != expected)[1:-1, 1:-1]
    # Where a diagonal's four pixels are equal, scikit-image is off by rounding; ours is exact.
    assert differ.mean() < 0.01
    flat = np.zeros_like(image, bool)
    for down in (-1, 1):
        for right in (-1, 1):
            others = [np.roll(image, (-d, -r), (0, 1)) for d, r in ((down, right), (down, 0), (0, right))]
            flat |= np.logical_and.reduce([other == image for other in others])
    assert not (differ & ~flat[1:-1, 1:-1]).any()


@settings(deadline=None)
@given(PICTURES, st.integers(0, 255))
def test_patterns_do_not_see_brightness(image, level):
    darker = image // 2
    np.testing.assert_array_equal(local_binary_pattern(darker), local_binary_pattern(darker + np.uint8(100)))
    assert (local_binary_pattern(np.full_like(image, level)) == 255).all()


def test_a_quarter_turn_turns_the_pattern_by_two_bits():
    image = RNG.integers(0, 256, (9, 9), dtype=np.uint8)
    pattern = local_binary_pattern(image)
    turned = local_binary_pattern(np.ascontiguousarray(np.rot90(image)))
    rolled = (pattern << np.uint8(2)) | (pattern >> np.uint8(6))
    np.testing.assert_array_equal(turned, np.rot90(rolled))


@pytest.mark.parametrize("function", ILLUMINATION.values())
@pytest.mark.parametrize("image", [np.zeros((3, 3)), np.zeros((3, 3, 4), np.uint8), np.zeros((0, 3), np.uint8)])
def test_other_arrays_are_refused(function, image):
    with pytest.raises(InvalidInput, match="expected a uint8 picture"):
        function(image)


def test_steps_in_order():
    np.testing.assert_array_equal(illuminate(GRAY, ["gamma", "emboss"]), emboss(gamma_equalise(GRAY)))
    assert (illuminate(GRAY, ["emboss", "gamma"]) != emboss(gamma_equalise(GRAY))).any()
    np.testing.assert_array_equal(illuminate(GRAY, []), GRAY)
    with pytest.raises(UnknownChoice, match="did you mean 'gamma'"):
        illuminate(GRAY, ["gama"])
    with pytest.raises(InvalidInput, match=r"\(h, w\); got"):
        local_binary_pattern(astronaut())
