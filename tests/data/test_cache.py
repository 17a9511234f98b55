import hashlib
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.trees import ck48_tree, fer_tree, noise, png, toy, write
from ferattn.data import FER2013, FER2013_CLASSES, CachedDataset, CKPlus, ImageFolder, Records, cache
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice


def test_the_cache_holds_what_the_files_hold(tmp_path):
    dataset = FER2013(fer_tree(tmp_path))
    cached = cache(dataset)
    assert cached.images.dtype == torch.uint8
    assert cached.nbytes == len(dataset) * 48 * 48
    for row in (0, 7, len(dataset) - 1):
        assert torch.equal(cached[row].image, dataset[row].image)
        assert cached[row][1:] == dataset[row][1:]
    assert cached.ids == dataset.ids
    assert cached.checksum() == dataset.checksum()
    assert torch.equal(cached.labels, dataset.labels)


def test_size_and_channels(tmp_path):
    dataset = FER2013(fer_tree(tmp_path))
    assert cache(dataset, size=20, channels=3).images.shape == (49, 3, 20, 20)
    assert cache(dataset, size=(10, 20)).images.shape == (49, 1, 10, 20)
    assert cache(dataset, size=20).checksum() == dataset.checksum()  # of the data, not of what was made of it
    with pytest.raises(InvalidOption, match="channels=4"):
        cache(dataset, channels=4)
    with pytest.raises(UnknownChoice, match="fit"):
        cache(dataset, size=20, fit="squash")


def test_images_of_different_shapes_need_a_size(tmp_path):
    write(tmp_path / "a/1.png", png(noise(0, 4, 5)))
    write(tmp_path / "b/2.png", png(noise(0, 6, 5, 3)))
    dataset = ImageFolder(tmp_path)
    with pytest.raises(InvalidInput, match=r"b/2\.png has shape \(1, 6, 5\).*size="):
        cache(dataset)
    stretched, padded = cache(dataset, size=8), cache(dataset, size=8, fit="pad")
    assert stretched.images.shape == (2, 1, 8, 8)
    assert not torch.equal(stretched.images, padded.images)


def test_nothing_readable_is_an_error(tmp_path):
    write(tmp_path / "a/1.png", b"")
    with pytest.raises(InvalidInput, match="no readable image among 1"):
        cache(ImageFolder(tmp_path, on_error="skip"))


@given(st.lists(st.integers(0, 39), max_size=20))
def test_a_subset_is_its_rows(rows):
    dataset = toy(subjects=5)
    part = dataset.subset(list(dict.fromkeys(rows)))
    for new, old in enumerate(dict.fromkeys(rows)):
        assert part.ids[new] == dataset.ids[old]
        assert part.subjects[new] == dataset.subjects[old]
        assert torch.equal(part[new].image, dataset[old].image)
        assert part[new].label == dataset[old].label == int(part.labels[new])


def test_positions_outside_are_refused():
    with pytest.raises(InvalidOption, match=r"0 to 40; toy has 40"):
        toy().subset([0, 40])
    with pytest.raises(InvalidOption, match="whole numbers"):
        toy().subset([0.5])
    with pytest.raises(IndexError):
        toy()[40]
    assert torch.equal(toy()[-1].image, toy()[39].image)
    assert toy()[-1].position == 39


def test_the_checksum_notices_every_change_but_not_the_order():
    dataset = toy()
    assert dataset.subset(range(39, -1, -1)).checksum() == dataset.checksum()
    pixel = dataset.images.clone()
    pixel[3, 0, 0, 0] ^= 1
    labels = dataset.records.labels.copy()
    labels[0] = (labels[0] + 1) % 4
    others = [
        CachedDataset("toy", dataset.records, pixel),
        CachedDataset("toy", Records(dataset.ids, labels, dataset.classes), dataset.images),
        CachedDataset(
            "toy",
            Records((*dataset.ids[:-1], "new"), dataset.records.labels, dataset.classes),
            dataset.images,
        ),
        dataset.subset(range(39)),
    ]
    assert len({dataset.checksum(), *(other.checksum() for other in others)}) == 5


def test_classes_can_be_chosen_and_reordered(tmp_path):
    dataset = cache(CKPlus(ck48_tree(tmp_path)))
    chosen = dataset.with_classes(["surprise", "angry"])
    assert chosen.classes == ("surprise", "angry")
    assert chosen.counts() == {name: dataset.counts()[name] for name in ("surprise", "angry")}
    with pytest.raises(UnknownChoice, match="no class 'neutral'"):
        dataset.with_classes(FER2013_CLASSES)
    seven = dataset.with_classes(FER2013_CLASSES, allow_missing=True)
    assert seven.counts()["neutral"] == 0
    assert seven.counts()["happy"] == dataset.counts()["happy"]
    with pytest.raises(InvalidOption, match="twice"):
        dataset.with_classes(["angry", "angry"])


def test_records_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInput, match="labels has 2 entries for 1"):
        Records(("a",), np.zeros(2, np.int64), ("x",))
    with pytest.raises(InvalidInput, match="name 'a'"):
        Records(("a", "a"), np.zeros(2, np.int64), ("x",))
    with pytest.raises(InvalidInput, match="labels run from 0 to 5"):
        Records(("a", "b"), np.array([0, 5]), ("x",))
    with pytest.raises(InvalidInput, match="uint8"):
        CachedDataset("x", Records(("a",), np.zeros(1, np.int64), ("x",)), torch.zeros(1, 1, 4, 4))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
def test_names_in_other_encodings_have_a_checksum_too(tmp_path):
    for name in (b"happy/caf\xe9.png", b"sad/a.png"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir()
        path.write_bytes(png(noise(0, 4, 4)))
    dataset = ImageFolder(tmp_path)
    total = hashlib.sha256()
    for row, name in enumerate((b"happy/caf\xe9.png\0happy\0", b"sad/a.png\0sad\0")):
        total.update(name + dataset.digests()[row].tobytes())
    assert dataset.checksum() == total.hexdigest()
