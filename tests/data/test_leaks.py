import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from data.trees import toy
from ferattn.data import CachedDataset, Records, check_leaks, find_duplicates, leave_one_subject_out
from ferattn.data.splits import random_split
from ferattn.errors import InvalidInput, InvalidOption


def blobs(n: int, side: int = 48, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, no two alike."""
    noise = np.random.default_rng(seed).normal(size=(n, side, side))
    smooth = gaussian_filter(noise, (0, side / 12, side / 12))
    low, high = smooth.min((1, 2), keepdims=True), smooth.max((1, 2), keepdims=True)
    return ((smooth - low) / (high - low) * 200 + 20).astype(np.uint8)


def recoded(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return np.array(Image.open(buffer))


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)[:, None])


COPIES = {
    "recoded": lambda image: recoded(image, 40),
    "darker": lambda image: (image * 0.7).astype(np.uint8),
    "shifted": lambda image: np.vstack([image[:1], image[:-1]]),
    "marked": lambda image: np.where(np.indices((48, 48)).sum(0) < 7, 120, image).astype(np.uint8),
    "mirrored": lambda image: image[:, ::-1],
    "mirrored and recoded": lambda image: recoded(np.ascontiguousarray(image[:, ::-1]), 60),
}


@pytest.mark.parametrize("copy", COPIES)
def test_changed_copies_are_found_and_nothing_else(copy):
    images = blobs(200)
    both = np.concatenate([images, np.stack([COPIES[copy](image) for image in images[:20]])])
    found = find_duplicates(tensor(both))
    assert found.pairs.tolist() == [[row, 200 + row] for row in range(20)]
    assert found.mirrored.tolist() == [copy.startswith("mirrored")] * 20
    assert (found.group == np.arange(220)).all()
    if copy.startswith("mirrored"):
        assert not len(find_duplicates(tensor(both), mirrored=False).pairs)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.floats(0.6, 0.99), st.integers(0, 1000))
def test_the_search_agrees_with_brute_force(n, threshold, seed):
    images = blobs(n, side=32, seed=seed)
    images = np.concatenate([images, images[: n // 2] // 2 + blobs(n // 2, side=32, seed=seed + 1) // 3])
    correlation = np.corrcoef(images.reshape(len(images), -1).astype(float))
    a, b = np.nonzero(np.triu(correlation >= threshold, 1))
    close = np.abs(correlation - threshold) < 1e-5
    found = {
        tuple(pair) for pair in find_duplicates(tensor(images), threshold=threshold, mirrored=False).pairs.tolist()
    }
    sure = {(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True) if not close[x, y]}
    assert sure <= found
    assert all(correlation[x, y] >= threshold - 1e-5 for x, y in found)


def test_identical_images_are_groups_and_flat_ones_are_never_alike():
    images = np.concatenate(
        [blobs(3), blobs(3)[:2], np.full((2, 48, 48), 9, np.uint8), np.full((1, 48, 48), 10, np.uint8)]
    )
    found = find_duplicates(tensor(images))
    assert found.group.tolist() == [0, 1, 2, 0, 1, 5, 5, 7]
    assert not len(found.pairs)


def test_the_report_counts_each_kind_and_names_the_images():
    images = blobs(10)
    train = [*images[:6], images[0]]
    test = [images[0], recoded(images[1], 50), images[2][:, ::-1], images[7], images[8]]
    n = len(train) + len(test)
    labels = np.zeros(n, np.int64)
    labels[7] = 1  # the copy of image 0 in test has another class
    records = Records(tuple(f"i{row}" for row in range(n)), labels, ("a", "b"))
    dataset = CachedDataset("x", records, tensor(np.stack(train + test)))
    report = check_leaks(dataset, {"train": np.arange(7), "test": np.arange(7, n)})
    assert report.leaks
    assert report.counts() == {
        ("train", "test"): {"identical": 2, "near": 1, "mirrored": 1},
        ("test", "train"): {"identical": 1, "near": 1, "mirrored": 1},
    }
    assert report.repeated == {"train": 1, "test": 0}
    assert report.label_conflicts == 3
    match = next(match for match in report.matches if match.image == "i8")
    assert (match.part, match.other, match.other_part, match.kind) == ("test", "i1", "train", "near")
    assert 0.92 < match.similarity < 1
    assert report.shared_subjects is None
    assert report.to_dict()["counts"]["test/train"]["mirrored"] == 1
    assert not check_leaks(dataset, {"train": np.arange(7), "test": np.arange(10, n)}).leaks
    assert (
        sum(
            check_leaks(dataset, {"a": np.arange(7), "b": np.arange(7, n)}, mirrored=False)
            .counts()["b", "a"]
            .values()
        )
        == 2
    )
    assert len(check_leaks(dataset, {"a": np.arange(7), "b": np.arange(7, n)}, threshold=1.0).matches) < len(
        report.matches
    )


def test_shared_subjects_are_found_in_random_splits_and_not_in_honest_ones():
    dataset = toy(60, subjects=6)
    random = check_leaks(dataset, random_split(dataset, {"train": 0.8, "test": 0.2}).folds[0])
    assert random.leaks
    assert set(random.shared_subjects["train/test"]) <= {f"P{row:02d}" for row in range(6)}
    assert len(random.shared_subjects["train/test"]) >= 3
    honest = check_leaks(dataset, leave_one_subject_out(dataset).folds[0])
    assert honest.shared_subjects == {}
    assert not honest.leaks


def test_bad_options_are_refused():
    for threshold in (0.5, 1.01, float("nan")):
        with pytest.raises(InvalidOption, match="threshold"):
            find_duplicates(tensor(blobs(2)), threshold=threshold)
    with pytest.raises(InvalidInput, match="uint8"):
        find_duplicates(torch.zeros(2, 1, 4, 4))
    with pytest.raises(InvalidOption, match="one part only"):
        check_leaks(toy(), {"a": np.arange(3), "b": np.arange(2, 5)})
    with pytest.raises(InvalidOption, match="nothing to compare"):
        check_leaks(toy(), {})
