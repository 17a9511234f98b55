import numpy as np
import pytest

from data.trees import ck48_tree, ck_original_tree, fer_tree, jaffe_tree, noise, png, write, zipped
from ferattn.data import FER2013, JAFFE, CKPlus, ImageFolder, cache, open_dataset
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice


def test_ck48_knows_the_subject_and_emotion_of_every_image(tmp_path):
    root = ck48_tree(tmp_path / "CK+48")
    dataset = CKPlus(root)
    files = {path.stem: path.parent.name for path in root.rglob("*.png")}
    assert set(dataset.ids) == set(files)
    spelling = {"anger": "angry", "sadness": "sad"}
    for row, name in enumerate(dataset.ids):
        assert dataset.subjects[row] == name[:4]
        assert dataset.classes[dataset[row].label] == spelling.get(files[name], files[name])
    assert "neutral" not in dataset.classes
    assert CKPlus(zipped(root, tmp_path / "ck.zip", top="CK+48/")).checksum() == dataset.checksum()


def test_frames_takes_the_last_of_each_sequence(tmp_path):
    root = ck48_tree(tmp_path)
    peaks = CKPlus(root, frames=1)
    assert len(peaks) * 3 == len(CKPlus(root))
    last = {}
    for name in CKPlus(root).ids:
        last[name[:8]] = max(last.get(name[:8], ""), name)
    assert set(peaks.ids) == set(last.values())


def test_the_original_distribution_takes_labels_from_the_emotion_files(tmp_path):
    root = ck_original_tree(tmp_path)
    dataset = CKPlus(root)
    assert dataset.classes == ("disgust", "surprise")
    assert dataset.ids == tuple(f"{stem}_{frame:08d}" for stem in ("S005_001", "S010_004") for frame in (4, 5, 6))
    assert dataset.counts() == {"disgust": 3, "surprise": 3}
    with_neutral = CKPlus(root, frames=9, neutral=True)
    assert with_neutral.counts() == {"disgust": 5, "surprise": 5, "neutral": 2}
    neutral = [name for row, name in enumerate(with_neutral.ids) if with_neutral[row].label == 2]
    assert neutral == ["S005_001_00000001", "S010_004_00000001"]


def test_bad_ck_files_are_named(tmp_path):
    original = ck_original_tree(tmp_path / "o")
    write(original / "Emotion/S010/005/S010_005_00000006_emotion.txt", b"nine\n")
    with pytest.raises(InvalidInput, match=r"S010_005_00000006_emotion.*'nine'"):
        CKPlus(original)
    assert len(CKPlus(original, on_error="skip")) == 6
    for code in (b"8.0", b"2.5", b"nan", b""):
        write(original / "Emotion/S010/005/S010_005_00000006_emotion.txt", code)
        with pytest.raises(InvalidInput, match="emotion's number"):
            CKPlus(original)
    folders = ck48_tree(tmp_path / "f")
    write(folders / "anger/me.png", png(noise(0, 4, 4)))
    with pytest.raises(InvalidInput, match=r"anger/me\.png: not a name of CK"):
        CKPlus(folders)
    with pytest.raises(InvalidOption, match="neutral=True"):
        CKPlus(folders, neutral=True)
    with pytest.raises(InvalidOption, match="frames=0"):
        CKPlus(folders, frames=0)
    with pytest.raises(InvalidInput, match="no CK"):
        CKPlus(jaffe_tree(tmp_path / "j"), on_error="skip")


def test_jaffe_reads_subject_and_emotion_from_the_names(tmp_path):
    dataset = JAFFE(jaffe_tree(tmp_path / "jaffe"))
    assert len(dataset) == 70
    assert set(dataset.counts().values()) == {10}
    row = dataset.ids.index("KR.SU1.28")
    assert (dataset.subjects[row], dataset.classes[dataset[row].label]) == ("KR", "surprise")
    assert np.array_equal(dataset[row].image[0].numpy(), noise(28, 64, 64))
    write(tmp_path / "jaffe/KA.XX1.99.tiff", b"")
    with pytest.raises(InvalidInput, match=r"KA\.XX1\.99"):
        JAFFE(tmp_path / "jaffe")
    assert len(JAFFE(tmp_path / "jaffe", on_error="skip").skipped) == 1


def test_any_folder_of_classes(tmp_path):
    for name in ("Happiness", "anger"):
        write(tmp_path / "plain" / name / "1.png", png(noise(1, 4, 4)))
    plain = ImageFolder(tmp_path / "plain")
    assert plain.classes == ("angry", "happy")
    assert plain.parts is None
    for part in ("train", "val", "test"):
        for name in ("2", "10"):
            write(tmp_path / "parts" / part / name / "1.png", png(noise(1, 4, 4)))
    parts = ImageFolder(zipped(tmp_path / "parts", tmp_path / "p.zip", top="wrapped/data/"))
    assert parts.classes == ("10", "2")
    assert sorted(set(parts.parts)) == ["test", "train", "validation"]
    assert parts.ids[0] == "test/10/1.png"
    named = ImageFolder(tmp_path / "parts", names={"2": "fear", "10": "happy"})
    assert named.classes == ("fear", "happy")
    with pytest.raises(InvalidInput, match="10: unknown folder"):
        ImageFolder(tmp_path / "parts", names={"2": "fear"})
    write(tmp_path / "plain/stray.png", png(noise(1, 4, 4)))
    with pytest.raises(InvalidInput, match=r"stray\.png: a picture outside"):
        ImageFolder(tmp_path / "plain")
    with pytest.raises(InvalidInput, match="no pictures"):
        ImageFolder(tmp_path / "plain" / "anger", on_error="skip")


def test_the_kind_is_found_out_from_the_names(tmp_path):
    trees = {
        FER2013: fer_tree(tmp_path / "a"),
        CKPlus: ck48_tree(tmp_path / "b"),
        JAFFE: jaffe_tree(tmp_path / "c"),
    }
    write(tmp_path / "d/happy/x.png", png(noise(0, 4, 4)))
    for kind, root in (*trees.items(), (ImageFolder, tmp_path / "d")):
        assert type(open_dataset(root)) is kind
    assert type(open_dataset(trees[CKPlus], "folder")) is ImageFolder
    with pytest.raises(UnknownChoice, match="dataset 'ckpuls'; did you mean 'ckplus'"):
        open_dataset(trees[CKPlus], "ckpuls")
    write(tmp_path / "e/readme.txt", b"")
    with pytest.raises(InvalidInput, match="neither pictures nor"):
        open_dataset(tmp_path / "e")


def test_a_truncated_image_is_named_or_skipped_and_the_rest_goes_on(tmp_path):
    root = jaffe_tree(tmp_path)
    victim = root / "KA.AN1.1.tiff"
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(InvalidInput, match=r"KA\.AN1\.1\.tiff"):
        cache(JAFFE(root))
    cached = cache(JAFFE(root, on_error="skip"))
    assert len(cached) == 69
    assert "KA.AN1.1" in cached.skipped[0].name
    assert "KA.AN1.1" not in cached.ids


def test_a_stray_folder_is_reported_and_renames_nothing(tmp_path):
    for folder in ("anger", "happiness", "neutral", "misc"):
        write(tmp_path / folder / "1.png", png(noise(1, 8, 8)))
    with pytest.raises(InvalidInput, match=r"misc.*unknown folder"):
        ImageFolder(tmp_path)
    dataset = ImageFolder(tmp_path, on_error="skip")
    assert dataset.classes == ("angry", "happy", "neutral")
    assert [entry.name for entry in dataset.skipped] == ["misc"]
    assert ImageFolder(tmp_path, names={"misc": "fear"}, on_error="skip").classes == ("fear",)


def test_empty_folders_are_told(tmp_path):
    for folder in ("train/anger", "train/happiness", "test/anger"):
        write(tmp_path / folder / "1.png", png(noise(1, 8, 8)))
    for folder in ("test/happiness", ".cache", "__MACOSX"):  # a class that has pictures elsewhere, and no classes
        (tmp_path / folder).mkdir()
    assert ImageFolder(tmp_path).classes == ("angry", "happy")
    (tmp_path / "train" / "contempt").mkdir()
    with pytest.raises(InvalidInput, match="train/contempt: an empty folder"):
        ImageFolder(tmp_path)
    assert [entry.name for entry in ImageFolder(tmp_path, on_error="skip").skipped] == ["train/contempt"]


def test_a_folder_does_not_pass_for_a_dataset(tmp_path):
    for folder in ("anger", "happiness"):
        write(tmp_path / "FER2013" / folder / "1.png", png(noise(1, 8, 8)))
    assert ImageFolder(tmp_path / "FER2013").name == "FER2013 folder"


def test_names_that_are_mostly_no_emotions_stay_as_they_are(tmp_path):
    for folder in ("cats", "dogs", "happiness"):
        write(tmp_path / folder / "1.png", png(noise(1, 8, 8)))
    assert ImageFolder(tmp_path).classes == ("cats", "dogs", "happiness")
