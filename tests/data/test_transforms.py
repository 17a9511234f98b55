import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from torchvision.transforms.v2 import functional as v2

from data.trees import noise, toy
from ferattn.data import (
    AUGMENTATIONS,
    VIEWS,
    ZCA,
    Augmentation,
    BatchTransform,
    Mixer,
    Standardize,
    make_mixer,
    make_transform,
    views,
)
from ferattn.data.geometry import affine, erase
from ferattn.data.keyed import keyed_uniform
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice

IMAGES = torch.from_numpy(noise(0, 6, 1, 20, 24))
INDICES = torch.arange(100, 106)
RECIPES = [name for name in AUGMENTATIONS if name != "chap2021"]


def splitmix(key: int, times: int = 1) -> int:
    """SplitMix64's output function with Python's integers."""
    mask = 2**64 - 1
    bits = key & mask
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & mask
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & mask
    return bits ^ (bits >> 31)


@given(st.integers(0, 2**62), st.integers(0, 10**6), st.integers(0, 2**40), st.integers(0, 9))
def test_random_numbers_are_splitmix_of_seed_epoch_image_and_column(seed, epoch, index, column):
    gamma = 0x9E3779B97F4A7C15
    key = splitmix(splitmix(seed + gamma) + epoch * 2 + 1)
    bits = splitmix(splitmix(key + (index + 1) * gamma) + (column + 1) * gamma)
    assert float(keyed_uniform(seed, epoch, torch.tensor([index]), 10)[0, column]) == (bits >> 40) / 2**24


def test_random_numbers_are_uniform_and_independent():
    u = keyed_uniform(3, 5, torch.arange(20000), 4).double().numpy()
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(np.hstack([u[:-1], u[1:]]).T) - np.eye(8)
    assert np.abs(correlation).max() < 0.03


@settings(deadline=None, max_examples=40)
@given(
    *(st.floats(low, high) for low, high in ((0.5, 1.5), (0.5, 1.5), (-0.4, 0.4), (-0.4, 0.4), (-3, 3))),
    st.booleans(),
)
def test_affine_agrees_with_scipy(sx, sy, cx, cy, radians, mirror):
    image = noise(1, 14, 18).astype(np.float32)
    ours = affine(
        torch.from_numpy(image)[None, None],
        torch.tensor([[sx, sy]]),
        torch.tensor([[cx, cy]]),
        torch.tensor([radians]),
        torch.tensor([mirror]),
    )
    # scipy: input position = matrix @ output position + offset, rows first, "nearest" outside, as in Keras.
    cos, sin = math.cos(radians), math.sin(radians)
    sign = -1 if mirror else 1
    matrix = np.array([[sy * cos, sy * sin * sign], [-sx * sin, sx * cos * sign]])
    middle = np.array([6.5, 8.5])
    target = middle + np.array([cy * 14 / 2, cx * 18 / 2])
    expected = ndimage.affine_transform(image, matrix, target - matrix @ middle, order=1, mode="nearest")
    assert np.abs(ours[0, 0].numpy() - expected).max() < 0.05  # of 255


def test_each_image_of_a_batch_has_its_own_numbers():
    images = IMAGES.float()
    scale = torch.rand(6, 2) + 0.5
    centre = torch.rand(6, 2) - 0.5
    together = affine(images, scale, centre)
    alone = torch.cat(
        [affine(images[row : row + 1], scale[row : row + 1], centre[row : row + 1]) for row in range(6)]
    )
    assert torch.allclose(together, alone, atol=1e-3)


def test_rotation_is_that_of_torchvision():
    image = torch.from_numpy(ndimage.gaussian_filter(noise(2, 21, 21).astype(np.float32), 2))[None, None]
    ours = affine(image, torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([math.radians(20)]))
    theirs = v2.rotate(image, 20, interpolation=v2.InterpolationMode.BILINEAR)
    inside = (slice(None), slice(None), slice(6, 15), slice(6, 15))
    assert (ours[inside] - theirs[inside]).abs().max() < 1e-2


@given(
    st.floats(0, 1),
    st.floats(-1.2, 1.2),
    st.floats(0, 0.999),
    st.floats(0, 0.999),
    st.integers(3, 20),
    st.integers(3, 20),
)
def test_erasing_blanks_one_rectangle_of_the_right_size(area, log_ratio, x, y, h, w):
    images = torch.ones(1, 2, h, w)
    gone = erase(images, torch.tensor([area]), torch.tensor([log_ratio]), torch.tensor([[x, y]])) == 0
    assert torch.equal(gone[:, 0], gone[:, 1])
    rows, columns = gone[0, 0].any(1), gone[0, 0].any(0)
    assert torch.equal(gone[0, 0], rows[:, None] & columns)
    root = math.sqrt(area * h * w)
    assert abs(int(columns.sum()) - min(w, root * math.exp(log_ratio / 2))) <= 0.51 or not gone.any()
    assert abs(int(rows.sum()) - min(h, root * math.exp(-log_ratio / 2))) <= 0.51 or not gone.any()


@pytest.mark.parametrize("name", RECIPES)
def test_a_transform_depends_on_seed_epoch_and_image_alone(name):
    transform = BatchTransform(AUGMENTATIONS[name], seed=1)
    batch = transform(IMAGES, INDICES, epoch=2)
    assert batch.shape == IMAGES.shape
    assert batch.dtype == torch.float32
    order = torch.tensor([4, 1, 5])
    assert torch.allclose(transform(IMAGES[order], INDICES[order], epoch=2), batch[order], atol=1e-4)
    state = torch.random.get_rng_state()
    assert torch.equal(transform(IMAGES, INDICES, epoch=2), batch)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is left alone
    if name != "none":
        for other in (
            transform(IMAGES, INDICES, epoch=3),
            transform(IMAGES, INDICES + 1, epoch=2),
            BatchTransform(AUGMENTATIONS[name], seed=2)(IMAGES, INDICES, epoch=2),
        ):
            assert not torch.allclose(other, batch)


@pytest.mark.parametrize("name", RECIPES)
def test_evaluation_only_scales(name):
    transform = BatchTransform(AUGMENTATIONS[name]).eval()
    assert torch.allclose(transform(IMAGES), IMAGES / 255)


def test_nothing_to_do_is_the_identity_and_zero_numbers_move_nothing():
    assert torch.allclose(BatchTransform(AUGMENTATIONS["none"])(IMAGES, INDICES), IMAGES / 255)
    barely = BatchTransform(Augmentation(zoom=1e-6, rotate_degrees=1e-6))
    assert torch.allclose(barely(IMAGES, INDICES), IMAGES / 255, atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"zoom": 0.2},
        {"shift": 0.2},
        {"crop_area": (0.5, 1.0)},
        {"crop_ratio": (0.5, 2.0)},
        {"rotate_degrees": 10},
        {"flip": 0.5},
        {"erase": 0.9},
        {"erase": 0.9, "erase_area": (0.5, 0.6)},
        {"erase": 0.9, "erase_ratio": (1.0, 1.0)},
    ],
)
def test_every_option_changes_images(change):
    base = Augmentation(erase=0.9) if len(change) == 2 else Augmentation()
    changed = BatchTransform(replace(base, **change))(IMAGES, INDICES)
    assert not torch.allclose(changed, BatchTransform(base)(IMAGES, INDICES))


def test_flips_come_as_often_as_asked_and_are_exact():
    images = torch.from_numpy(noise(5, 1, 1, 6, 7)).expand(4000, 1, 6, 7)
    result = BatchTransform(Augmentation(flip=0.3))(images, torch.arange(4000))
    mirrored = ((result - images.flip(-1) / 255).abs() < 1e-6).flatten(1).all(1)
    assert torch.allclose(result[~mirrored], (images / 255)[~mirrored])
    assert abs(float(mirrored.float().mean()) - 0.3) < 0.03


@pytest.mark.parametrize(("name", "pixels"), [("luo2023", 10), ("luo2023-wide", 20)])
def test_shifts_are_uniform_up_to_the_limit(name: str, pixels: int):
    ramp = torch.arange(100, dtype=torch.uint8).expand(1500, 1, 100, 100)
    result = BatchTransform(AUGMENTATIONS[name])(ramp, torch.arange(1500)) * 255
    moved = result[:, 0, 50, 50] - 50
    assert stats.kstest(moved.numpy(), stats.uniform(-pixels, 2 * pixels).cdf).pvalue > 1e-3


def test_zooms_are_independent_in_width_and_height_as_keras_has_them():
    ramp = torch.arange(100, dtype=torch.uint8).expand(1500, 1, 100, 100)
    transform = BatchTransform(replace(AUGMENTATIONS["miskow2022"], flip=0.0))
    wide = transform(ramp, torch.arange(1500)) * 255
    tall = transform(ramp.transpose(2, 3), torch.arange(1500)) * 255
    sx = (wide[:, 0, 50, 60] - wide[:, 0, 50, 40]) / 20
    sy = (tall[:, 0, 60, 50] - tall[:, 0, 40, 50]) / 20
    for scale in (sx, sy):
        assert stats.kstest(scale.numpy(), stats.uniform(0.7, 0.6).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(sx, sy)[0, 1]) < 0.08


def test_size_applies_in_training_and_evaluation():
    for name in RECIPES:
        transform = BatchTransform(AUGMENTATIONS[name], size=(10, 12))
        assert transform(IMAGES, INDICES).shape == (6, 1, 10, 12)
        assert transform.eval()(IMAGES).shape == (6, 1, 10, 12)


def test_wrong_input_is_refused():
    transform = BatchTransform(AUGMENTATIONS["strong"])
    with pytest.raises(InvalidInput, match="uint8"):
        transform(IMAGES.float(), INDICES)
    with pytest.raises(InvalidInput, match=r"\(b, c, h, w\)"):
        transform(IMAGES[0], INDICES)
    for indices in (None, INDICES[:2]):
        with pytest.raises(InvalidOption, match="one for each of 6 images"):
            transform(IMAGES, indices)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("zoom", 1.0),
        ("flip", 1.1),
        ("crop_area", (0.9, 0.5)),
        ("crop_area", 0.5),
        ("rotate_degrees", -1),
        ("zca_epsilon", 0.0),
        ("erase", (0.1, 0.2)),
        ("mixup", float("nan")),
    ],
)
def test_impossible_augmentations_are_refused(name, value):
    with pytest.raises(InvalidOption, match=name):
        Augmentation(**{name: value})


def test_the_recipes_are_those_of_the_papers():
    assert AUGMENTATIONS["miskow2022"] == Augmentation(zoom=0.3, flip=0.5)
    assert AUGMENTATIONS["chap2021"] == Augmentation(shift=0.1, flip=0.5, zca_epsilon=1e-6)
    with pytest.raises(UnknownChoice, match="did you mean 'strong'"):
        make_transform("stong", toy())


def test_standardizing_gives_the_training_images_mean_zero_and_deviation_one():
    train = toy(50, channels=3)
    transform = make_transform("none", train, standardize=True).eval()
    result = transform(train.images)
    assert torch.allclose(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(result.std((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-5)
    with pytest.raises(InvalidOption, match="std positive"):
        Standardize((0.5,), (0.0,))


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_zca_agrees_with_the_singular_values(epsilon):
    images = toy(200, side=5).images
    zca = ZCA((1, 5, 5), epsilon).fit(images, batch=64)
    x = images.numpy().reshape(200, -1) / 255.0
    x = x - x.mean(0)
    _, s, vt = np.linalg.svd(x / math.sqrt(200))  # Keras's formula
    expected = x @ (vt.T / np.sqrt(s**2 + epsilon)) @ vt
    ours = zca(images.float() / 255).numpy().reshape(200, -1)
    assert np.abs(ours - expected).max() < 1e-3
    if epsilon == 1e-6:
        assert np.abs(np.cov(ours.T, bias=True) - np.eye(25)).max() < 1e-3


def test_chap_whitens_in_training_and_evaluation_and_its_state_travels():
    train = toy(60, side=6)
    transform = make_transform("chap2021", train)
    white = transform.eval()(train.images)
    assert abs(float(white.mean())) < 1e-3
    assert not torch.allclose(transform.train()(train.images, torch.arange(60)), white)
    other = BatchTransform(AUGMENTATIONS["chap2021"], ZCA((1, 6, 6)))
    other.load_state_dict(transform.state_dict())
    assert torch.equal(other.eval()(train.images), white)
    with pytest.raises(InvalidOption, match="ZCA"):
        make_transform("chap2021", train, standardize=True)
    with pytest.raises(InvalidInput, match="at least two"):
        ZCA((1, 6, 6)).fit(train.images[:1])
    with pytest.raises(InvalidOption, match="epsilon"):
        ZCA((1, 6, 6), 0.0)


def test_views_are_as_many_as_announced_and_the_last_five_crops_mirror_the_first():
    for kind, count in VIEWS.items():
        assert views(IMAGES, kind).shape == (6, count, 1, 20, 24)
    assert torch.equal(views(IMAGES, "none")[:, 0], IMAGES)
    assert torch.equal(views(IMAGES, "flip")[:, 1], IMAGES.flip(-1))
    crops = views(IMAGES.float(), "ten-crop", crop=16)
    corner = v2.resize(IMAGES.float()[..., :16, :16], [20, 24], antialias=True)
    assert torch.allclose(crops[:, 0], corner)
    mirrored = {row: crops[:, row].flip(-1) for row in range(10)}
    # The mirrored upper left corner is what the upper right one of the mirror image shows, and so on.
    for ours, theirs in ((0, 6), (1, 5), (2, 8), (3, 7), (4, 9)):
        assert torch.allclose(mirrored[ours], crops[:, theirs], atol=1e-3)
    assert not torch.allclose(crops, views(IMAGES.float(), "ten-crop"))
    for bad in (0, 21):
        with pytest.raises(InvalidOption, match="from 1 to 20"):
            views(IMAGES, "ten-crop", crop=bad)
    with pytest.raises(InvalidOption, match="is for ten-crop"):
        views(IMAGES, "flip", crop=10)
    with pytest.raises(UnknownChoice, match="test-time views"):
        views(IMAGES, "tencrop")


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_shares_follow_the_beta_distribution(alpha):
    n = 4000
    images = torch.arange(n, dtype=torch.float32)[:, None, None, None] % 2
    labels = (torch.arange(n) % 2).long()
    mixed, targets = Mixer(2, mixup=alpha, seed=1)(images, labels, torch.arange(n))
    assert torch.allclose(targets.sum(1), torch.ones(n))
    assert torch.allclose(mixed.flatten(), targets[:, 1], atol=1e-5)  # as the images
    share = torch.where(labels == 1, targets[:, 1], targets[:, 0])
    different = (share < 1).numpy()
    ours = share.numpy()[different]
    assert stats.kstest(ours, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(2, 9), st.integers(2, 9), st.integers(0, 1000))
def test_cutmix_pastes_one_rectangle_and_labels_by_its_area(b, h, w, seed):
    images = torch.arange(b, dtype=torch.float32)[:, None, None, None].expand(b, 1, h, w)
    labels = torch.arange(b)
    mixed, targets = Mixer(max(b, 2), cutmix=1.0, seed=seed)(images, labels, torch.arange(b))
    for row in range(b):
        own = mixed[row, 0] == row
        assert float(own.float().mean()) == pytest.approx(float(targets[row, row]), abs=1e-5)
        pasted = ~own
        assert torch.equal(pasted, pasted.any(1)[:, None] & pasted.any(0))
        assert len(mixed[row, 0][pasted].unique()) <= 1


def test_mixing_is_reproducible_and_both_kinds_take_turns():
    images = torch.rand(400, 1, 8, 8)
    labels = torch.randint(0, 7, (400,))
    mixer = Mixer(7, mixup=0.5, cutmix=1.0, seed=4)
    mixed, targets = mixer(images, labels, torch.arange(400), epoch=1)
    again, _ = mixer(images, labels, torch.arange(400), epoch=1)
    assert torch.equal(mixed, again)
    other, _ = mixer(images, labels, torch.arange(400), epoch=2)
    assert not torch.equal(mixed, other)
    untouched_pixels = (mixed == images).flatten(1).float().mean(1)
    assert 0.3 < float((untouched_pixels > 0).float().mean()) < 0.8
    assert targets.shape == (400, 7)
    for bad in ({}, {"mixup": -1.0}, {"mixup": -0.1, "cutmix": 1.0}):
        with pytest.raises(InvalidOption, match="mixup"):
            Mixer(7, **bad)
    with pytest.raises(InvalidOption, match="classes"):
        Mixer(1, mixup=1.0)
    with pytest.raises(InvalidInput, match="floating point"):
        mixer(images.byte(), labels, torch.arange(400))


def test_a_recipe_brings_its_mixer():
    strong = make_mixer("strong", 7, seed=3)
    assert (strong.mixup, strong.cutmix, strong.seed, strong.classes) == (0.2, 1.0, 3, 7)
    assert make_mixer("miskow2022", 7) is None
    assert make_mixer(Augmentation(cutmix=0.5), 2).cutmix == 0.5
    with pytest.raises(UnknownChoice, match="augmentation 'storng'"):
        make_mixer("storng", 7)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, True])
def test_seeds_that_are_none_are_refused(seed):
    with pytest.raises(InvalidOption, match="seed="):
        BatchTransform(AUGMENTATIONS["strong"], seed=seed)
    with pytest.raises(InvalidOption, match="seed="):
        Mixer(7, mixup=1.0, seed=seed)
