import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.trees import ck48_tree, fer_tree, toy
from ferattn.data import (
    FER2013,
    CKPlus,
    cache,
    contact_sheet,
    equalised_share,
    is_equalised,
    mean_and_std,
    summarize,
)
from ferattn.errors import InvalidInput, InvalidOption


def test_the_summary_counts_and_measures(tmp_path):
    dataset = FER2013(fer_tree(tmp_path))
    summary = summarize(dataset)
    assert summary["images"] == 49
    assert summary["counts"]["train"] == dict.fromkeys(dataset.classes, 3)
    assert summary["counts"]["private"] == dict.fromkeys(dataset.classes, 2)
    assert summary["sizes"] == {"48x48x1": 49}
    train = cache(dataset.part("train")).images.numpy() / 255
    assert summary["statistics"]["train"]["mean"] == pytest.approx(train.mean())
    assert summary["statistics"]["train"]["std"] == pytest.approx(train.std())
    assert mean_and_std(cache(dataset.part("train"))) == pytest.approx((train.mean(), train.std()))
    assert summary["subjects"] is None


def test_equalised_pictures_are_told_from_others(tmp_path):
    rng = np.random.default_rng(0)
    natural = [rng.normal(100, 40, (48, 48)).clip(0, 255).astype(np.uint8) for _ in range(3)]
    equalised = [cv2.equalizeHist(picture) for picture in natural]
    assert [is_equalised(torch.from_numpy(picture)[None]) for picture in natural + equalised] == [False] * 3 + [
        True
    ] * 3
    assert is_equalised(torch.from_numpy(np.stack([equalised[0]] * 3)))  # the same in three channels
    assert not is_equalised(torch.full((1, 9, 9), 77, dtype=torch.uint8))
    rows = [(label, "Training", picture) for label, picture in enumerate(natural[:2] + equalised)]
    dataset = FER2013(fer_tree(tmp_path, rows))
    assert summarize(dataset)["equalised_share"] == equalised_share(cache(dataset)) == 0.6
    stored = cache(dataset)
    assert equalised_share(stored, limit=2) == np.mean([is_equalised(stored.images[row]) for row in (0, 4)])
    with pytest.raises(InvalidInput, match="empty"):
        equalised_share(stored.subset(np.array([], np.int64)))


def test_equalisation_is_seen_through_recoding():
    natural = np.random.default_rng(0).normal(100, 40, (48, 48)).clip(0, 255)
    smooth = cv2.GaussianBlur(natural, (0, 0), 2)
    picture = cv2.equalizeHist(np.round(255 * (smooth - smooth.min()) / np.ptp(smooth) / 2).astype(np.uint8))
    recoded = cv2.imdecode(cv2.imencode(".jpg", picture)[1], cv2.IMREAD_GRAYSCALE)
    assert not np.array_equal(picture, recoded)
    assert is_equalised(torch.from_numpy(recoded)[None])


def test_subjects_are_counted_and_bad_files_are_listed_not_counted(tmp_path):
    root = ck48_tree(tmp_path)
    dataset = CKPlus(root, on_error="skip")
    (root / dataset._reader.names[0]).write_bytes(b"")
    summary = summarize(dataset)
    assert summary["subjects"] == len(set(dataset.subjects))
    assert summary["images"] == len(dataset) - 1 == sum(summary["counts"]["all"].values())
    assert len(summary["skipped"]) == 1
    with pytest.raises(InvalidInput, match="png"):
        summarize(CKPlus(root))


def test_the_sheet_has_a_row_for_each_class_and_is_reproducible(tmp_path):
    dataset = toy(60, classes=3, side=20)
    contact_sheet(dataset, tmp_path / "a.png", columns=4, side=20)
    contact_sheet(dataset, tmp_path / "b.png", columns=4, side=20)
    contact_sheet(dataset, tmp_path / "c.png", columns=4, side=20, seed=1)
    a, b, c = (np.array(Image.open(io.BytesIO((tmp_path / f"{name}.png").read_bytes()))) for name in "abc")
    assert a.shape == (3 * 34, 80, 3)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    first = a[14:34, :20, 0]
    assert any(np.array_equal(first, image[0]) for image in dataset.images[dataset.labels == 0].numpy())
    with pytest.raises(InvalidOption, match="columns=0"):
        contact_sheet(dataset, tmp_path / "d.png", columns=0)
    with pytest.raises(InvalidOption, match="cannot be written"):
        contact_sheet(dataset, tmp_path / "no/d.png")
