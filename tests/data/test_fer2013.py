import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.trees import CSV_ORDER, csv_text, fer_rows, fer_tree, noise, png, write, zipped
from ferattn.data import FER2013, FER2013_CLASSES, cache
from ferattn.data.csvfile import CHUNK_ROWS, parse_pixels
from ferattn.data.fer2013 import OFFICIAL_COUNTS
from ferattn.errors import InvalidInput, UnknownChoice

ROWS = fer_rows()


def contents(dataset) -> Counter:
    """What is in it, whatever the order and the names."""
    part = dataset.parts
    return Counter(
        (part[row], dataset.classes[dataset[row].label], dataset[row].image.numpy().tobytes())
        for row in range(len(dataset))
    )


def expected() -> Counter:
    part = {"Training": "train", "PublicTest": "public", "PrivateTest": "private"}
    return Counter((part[usage], CSV_ORDER[label], pixels.tobytes()) for label, usage, pixels in ROWS)


LAYOUTS = {
    "fer2013.csv": lambda root: write(root / "fer2013.csv", csv_text(ROWS).encode()),
    "nested": lambda root: write(root / "fer2013/fer2013.csv", csv_text(ROWS).encode()),
    "icml": lambda root: write(root / "icml_face_data.csv", csv_text(ROWS, "emotion, Usage, pixels").encode()),
    "folders": fer_tree,
    "folders in a folder": lambda root: fer_tree(root / "archive"),
}


@pytest.mark.parametrize("zipped_too", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images_labels_and_splits(tmp_path, layout, zipped_too):
    LAYOUTS[layout](tmp_path / "data")
    root = zipped(tmp_path / "data", tmp_path / "data.zip") if zipped_too else tmp_path / "data"
    dataset = FER2013(root)
    assert contents(dataset) == expected()
    assert dataset.classes == FER2013_CLASSES
    for split, size in (("train", 21), ("public", 14), ("private", 14), ("merged", 28), ("all", 49)):
        assert len(FER2013(root, split)) == size
    assert FER2013(root, "merged").ids == dataset.part("merged").ids
    assert not dataset.is_official


def test_a_csv_file_may_be_given_itself(tmp_path):
    write(tmp_path / "fer2013.csv", csv_text(ROWS).encode())
    assert contents(FER2013(tmp_path / "fer2013.csv")) == expected()


def test_train_and_test_csv_of_the_challenge(tmp_path):
    train = [row for row in ROWS if row[1] == "Training"]
    rest = [row for row in ROWS if row[1] != "Training"]
    write(tmp_path / "train.csv", csv_text(train, "emotion,pixels").encode())
    write(tmp_path / "test.csv", csv_text(rest, "pixels").encode())
    assert len(FER2013(tmp_path)) == len(FER2013(tmp_path, "train")) == 21
    unlabelled = FER2013(tmp_path, "unlabelled")
    assert len(unlabelled) == 28
    assert set(unlabelled.labels.tolist()) == {-1}
    with pytest.raises(UnknownChoice, match=r"'private' here; test\.csv has no emotion column"):
        FER2013(tmp_path, "private")


def test_a_test_folder_that_does_not_say_which_is_which_is_merged_and_never_private(tmp_path):
    write(tmp_path / "train/angry/1.png", png(noise(0, 48, 48)))
    write(tmp_path / "test/angry/2.png", png(noise(1, 48, 48)))
    write(tmp_path / "test/angry/PrivateTest_3.png", png(noise(2, 48, 48)))
    assert len(FER2013(tmp_path, "merged")) == 2
    for split in ("public", "private"):
        with pytest.raises(UnknownChoice, match="which test images are public and which private"):
            FER2013(tmp_path, split)
    with pytest.raises(UnknownChoice):
        FER2013(tmp_path).part("private")


def test_unknown_splits_folders_and_layouts(tmp_path):
    fer_tree(tmp_path)
    with pytest.raises(UnknownChoice, match=r"split of FER2013 'pivate'; did you mean 'private'"):
        FER2013(tmp_path, "pivate")
    write(tmp_path / "train/hapy/Training_1.png", png(ROWS[0][2]))
    with pytest.raises(InvalidInput, match=r"train/hapy.*did you mean 'happy'"):
        FER2013(tmp_path)
    write(tmp_path / "train/contempt/Training_2.png", png(ROWS[0][2]))
    write(tmp_path / "test/angry/Training_3.png", png(ROWS[0][2]))
    write(tmp_path / "extra/angry/x.png", png(ROWS[0][2]))
    dataset = FER2013(tmp_path, on_error="skip")
    assert contents(dataset) == expected()
    assert len(dataset.skipped) == 4
    with pytest.raises(InvalidInput, match="no FER2013 here"):
        FER2013(tmp_path / "train", on_error="skip")
    fer_tree(tmp_path / "copy")
    with pytest.raises(InvalidInput, match="several copies"):
        FER2013(tmp_path, on_error="skip")


BAD_ROWS = {
    "2303 pixels": ("3," + " ".join(["7"] * 2303) + ",Training", "2303 pixels where 2304"),
    "2305 pixels": ("3," + " ".join(["7"] * 2305) + ",Training", "2305 pixels"),
    "a pixel of 256": ("3," + " ".join(["256"] * 2304) + ",Training", "0 to 255"),
    "a word": ("3," + " ".join(["x"] * 2304) + ",Training", "0 to 255"),
    "negative": ("3," + " ".join(["-1"] * 2304) + ",Training", "0 to 255"),
    "emotion 7": ("7," + " ".join(["7"] * 2304) + ",Training", "emotion '7'"),
    "no emotion": ("," + " ".join(["7"] * 2304) + ",Training", "emotion ''"),
    "usage": ("3," + " ".join(["7"] * 2304) + ",Trainign", "did you mean 'training'"),
    "short": ("3", "1 columns where 3"),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_row_is_named_and_can_be_skipped(tmp_path, bad):
    line, reason = BAD_ROWS[bad]
    lines = csv_text(ROWS).splitlines()
    lines.insert(5, line)
    write(tmp_path / "fer2013.csv", "\n".join(lines).encode())
    with pytest.raises(InvalidInput, match=rf"fer2013\.csv row 5: .*{reason}"):
        FER2013(tmp_path)
    dataset = FER2013(tmp_path, on_error="skip")
    assert contents(dataset) == expected()
    assert [entry.name for entry in dataset.skipped] == ["fer2013.csv row 5"]


@pytest.mark.parametrize("header", ["emotion,pixel,Usage", "pixels,Usage,label", "", "a,b,c"])
def test_a_missing_column_says_which_were_found(tmp_path, header):
    write(tmp_path / "fer2013.csv", (header + "\n1,2 3,Training\n").encode())
    with pytest.raises(InvalidInput, match=r"no column '(emotion|pixels)'; needed: emotion, pixels, usage; found"):
        FER2013(tmp_path, on_error="skip")


def test_rows_beyond_one_chunk_keep_their_order(tmp_path):
    rows = [(index % 7, "Training", np.full((48, 48), index % 256, np.uint8)) for index in range(CHUNK_ROWS + 3)]
    write(tmp_path / "fer2013.csv", csv_text(rows).encode())
    dataset = FER2013(tmp_path)
    assert [int(dataset.read(index)[0, 0, 0]) for index in range(len(dataset))] == [
        index % 256 for index in range(len(rows))
    ]
    assert dataset.ids[CHUNK_ROWS] == f"fer2013.csv:{CHUNK_ROWS + 1}"


@given(st.lists(st.integers(0, 255), min_size=1))
def test_pixels_parse_like_int(values):
    text = " ".join(map(str, values))
    assert parse_pixels(text).tolist() == values


@given(st.text(alphabet="0123456789 -.x\t", max_size=30))
def test_other_pixels_are_refused_as_int_would(text):
    words = text.split(" ")
    good = all(word.isdigit() and len(word) <= 3 and int(word) < 256 for word in words)
    parsed = parse_pixels(text)
    assert (parsed is not None) == good
    if good:
        assert parsed.tolist() == [int(word) for word in words]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_csv_never_ends_in_another_error(tmp_path, data):
    content = bytearray(csv_text(ROWS[:3]).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=8))
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    for policy in ("raise", "skip"):
        try:
            dataset = FER2013(path, on_error=policy)
        except InvalidInput as error:
            message = str(error)
        else:
            message = "fer2013.csv"
            assert len(dataset) + len(dataset.skipped) >= 1
            assert cache(dataset).images.shape[1:] == (1, 48, 48)
        assert "fer2013.csv" in message


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_zip_never_ends_in_another_error(tmp_path, data):
    path = tmp_path / "data.zip"
    if not (tmp_path / "data").exists():
        fer_tree(tmp_path / "data", ROWS[:3])
    content = bytearray(zipped(tmp_path / "data", path).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        # The central directory lies at the end: damage it as often as the images.
        tail = data.draw(st.booleans())
        place = data.draw(st.integers(max(0, len(content) - 600) if tail else 0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    for policy in ("raise", "skip"):
        try:
            cached = cache(FER2013(path, on_error=policy))
        except InvalidInput as error:
            message = str(error)
        else:
            message = "data.zip"
            assert len(cached) + len(cached.skipped) >= 1
        assert "data.zip" in message or "FER2013" in message


def test_the_real_counts_are_the_official_ones(fer2013_zip):
    dataset = FER2013(fer2013_zip)
    assert dataset.is_official
    for split, size in (("train", 28709), ("public", 3589), ("private", 3589)):
        part = dataset.part(split)
        assert len(part) == size
        assert part.counts() == OFFICIAL_COUNTS[split]
    assert len(dataset.part("merged")) == 7178
    assert OFFICIAL_COUNTS["private"]["disgust"] == 55  # as printed with the data


def test_real_images_decode_to_48_by_48_grey(fer2013_zip):
    with zipfile.ZipFile(fer2013_zip) as archive:
        names = archive.namelist()
    dataset = FER2013(fer2013_zip, "private")
    some = cache(dataset.subset(list(range(0, 3589, 400))))
    assert some.images.shape == (9, 1, 48, 48)
    assert some.images.float().std() > 20
    assert set(dataset.ids) <= set(names)
    assert torch.equal(some.images[1], dataset.read(400))
