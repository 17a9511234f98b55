import csv
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice
from ferattn.faces import Face, crop, detect, make_detector
from ferattn.faces.folders import crop_folder
from ferattn.faces.illumination import gamma_equalise

RNG = np.random.default_rng(0)


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40), dtype=np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "in"
    for seed, name in enumerate(("happy/a.png", "happy/b.jpg", "sad/a.png", "sad/deep/c.bmp")):
        picture(root / name, seed)
    return root


def report(out: Path) -> dict[str, dict[str, str]]:
    with (out / "crop_report.csv").open(newline="") as file:
        return {row["source"]: row for row in csv.DictReader(file)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def middle(image):
    return [Face((10, 5, 20, 20), 0.5)]


def test_class_folders_are_kept_and_crops_are_what_crop_gives(pictures, tmp_path):
    out = tmp_path / "out"
    summary = crop_folder(pictures, out, detector=middle, size=32, margin=0.0)
    names = {"happy/a.png", "happy/b.png", "sad/a.png", "sad/deep/c.png"}
    assert {n for n in files(out) if n.endswith(".png")} == names
    assert (summary.kept, dict(summary.dropped), summary.found_share) == (4, {}, 1.0)
    stored = np.asarray(Image.open(out / "happy/b.png"))
    np.testing.assert_array_equal(stored, crop(pictures / "happy/b.jpg", middle(None)[0], 32, margin=0.0))
    row = report(out)["happy/b.jpg"]
    assert (row["output"], row["status"], row["faces"], row["score"]) == (
        "happy/b.png",
        "kept",
        "1",
        "0.5000",
    )
    assert [float(row[k]) for k in ("x", "y", "width", "height")] == [10, 5, 20, 20]


def test_a_detector_by_name_finds_the_astronaut(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(astronaut()).save(tmp_path / "in/astronaut.png")
    Image.new("L", (60, 60), 90).save(tmp_path / "in/wall.png")
    summary = crop_folder(tmp_path / "in", tmp_path / "out", detector="cascade")
    assert (summary.kept, summary.with_face, summary.readable) == (1, 1, 2)
    assert dict(summary.dropped) == {"no face": 1}
    assert summary.found_share == 0.5
    [face] = detect(astronaut(), "cascade", channels="rgb")
    stored = np.asarray(Image.open(tmp_path / "out/astronaut.png"))
    np.testing.assert_array_equal(stored, crop(astronaut(), face, channels="rgb"))


def test_everything_that_goes_wrong_is_a_line_and_the_rest_goes_on(pictures, tmp_path):
    (pictures / "broken.jpg").write_bytes((pictures / "happy/b.jpg").read_bytes()[:200])
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "list.csv").write_text("a,b")
    (pictures / "loop").symlink_to(pictures)
    picture(pictures / "none.png", 7)
    picture(pictures / "two.png", 8)

    known = {np.asarray(Image.open(pictures / n)).tobytes(): n for n in ("none.png", "two.png")}

    def detector(image):
        return middle(image) * {"none.png": 0, "two.png": 2}.get(known.get(image[..., 0].tobytes()), 1)

    before = files(pictures)
    out = tmp_path / "out"
    summary = crop_folder(pictures, out, detector=detector, several="drop")
    assert files(pictures) == before
    assert summary.kept == 4
    assert dict(summary.dropped) == {
        "unreadable": 2,
        "not a picture": 1,
        "folder read already": 1,
        "no face": 1,
        "several faces": 1,
    }
    assert (summary.with_face, summary.readable) == (5, 6)
    rows = report(out)
    assert "broken.jpg" not in files(out)
    assert "cannot read" in rows["broken.jpg"]["detail"]
    assert rows["two.png"]["faces"] == "2"
    assert all(row["output"] == "" for row in rows.values() if row["status"] == "dropped")


def test_odd_pictures_become_crops(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    gray = RNG.integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(gray.astype(np.uint16) * 257).save(root / "deep.png")
    Image.fromarray(gray).convert("P").save(root / "palette.gif")
    Image.fromarray(gray).convert("CMYK").save(root / "cmyk.tif")
    Image.fromarray(gray).convert("LA").save(root / "la.png")
    Image.new("RGB", (1, 1), "red").save(root / "pixel.png")
    frames = [Image.new("L", (20, 20), v) for v in (10, 200)]
    frames[0].save(root / "animated.gif", save_all=True, append_images=frames[1:])
    out = tmp_path / "out"
    assert crop_folder(root, out, detector="none", size=20, margin=0.0).kept == 5
    assert report(out)["animated.gif"]["reason"] == "unreadable"
    assert "holds 2 pictures" in report(out)["animated.gif"]["detail"]
    for name in ("deep", "palette", "la"):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{name}.png")), gray)
    assert set(np.unique(np.asarray(Image.open(out / "pixel.png")))) == {76}


def test_no_face_can_keep_the_whole_picture(pictures, tmp_path):
    summary = crop_folder(pictures, tmp_path / "out", detector=lambda image: [], no_face="whole", size=40)
    assert (summary.kept, summary.with_face, summary.readable) == (4, 0, 4)
    assert report(tmp_path / "out")["sad/a.png"]["reason"] == "whole picture"
    whole = crop(pictures / "sad/a.png", Face((0, 0, 40, 30)), 40, margin=0.0)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/sad/a.png")), whole)


def test_options_reach_the_crops(pictures, tmp_path):
    base = {"size": 24, "margin": 0.0}
    plain = files_of_run(pictures, tmp_path / "plain", **base)
    for number, option in enumerate(
        (
            {"size": 25},
            {"margin": 0.3},
            {"square": False},
            {"color": "rgb"},
            {"padding": "black"},
            {"illumination": ["gamma"]},
            {"illumination": ["gamma", "emboss"]},
            {"several": "best"},
            {"align": False},
        )
    ):
        assert files_of_run(pictures, tmp_path / str(number), **{**base, **option}) != plain, option


def files_of_run(source, out, **options):
    points = ((14, 10), (24, 14), (18, 15), (14, 20), (22, 22))

    def two(image):
        return [Face((25, -4, 30, 26), 0.5, points), Face((0, 0, 8, 10), 0.9)]

    crop_folder(source, out, detector=two, **options)
    return {name: content for name, content in files(out).items() if name.endswith(".png")}


def test_illumination_is_applied_to_the_crop(pictures, tmp_path):
    crop_folder(pictures, tmp_path / "out", detector=middle, illumination=["gamma"])
    expected = gamma_equalise(crop(pictures / "sad/a.png", middle(None)[0]))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/sad/a.png")), expected)


def test_a_second_run_does_only_what_is_new(pictures, tmp_path):
    out = tmp_path / "out"
    seen = []

    def detector(image):
        seen.append(image)
        return middle(image)

    crop_folder(pictures, out, detector=detector)
    first = files(out)
    assert crop_folder(pictures, out, detector=detector).resumed == 4
    assert len(seen) == 4
    assert files(out) == first
    (out / "sad/a.png").unlink()
    picture(pictures / "happy/a.png", 99)
    picture(pictures / "happy/new.png", 5)
    summary = crop_folder(pictures, out, detector=detector)
    assert len(seen) == 7
    assert (summary.kept, summary.resumed) == (5, 2)
    assert files(out)["sad/a.png"] == first["sad/a.png"]
    assert files(out)["happy/a.png"] != first["happy/a.png"]


def test_clashing_names_get_their_own_files(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    for seed, name in enumerate(("a.png", "a.jpg", "A.bmp", "b.png")):
        picture(root / name, seed)
    assert crop_folder(root, out, detector=middle).kept == 4
    assert {n for n in files(out) if n.endswith(".png")} == {"a.png.png", "a.jpg.png", "A.bmp.png", "b.png"}


def test_a_zip_is_cropped_without_unpacking(pictures, tmp_path):
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(pictures.rglob("*.*")):
            file.write(path, path.relative_to(pictures))
        file.writestr("../evil.png", b"x")
    crop_folder(pictures, tmp_path / "out", detector=middle)
    summary = crop_folder(archive, tmp_path / "zip/out", detector=middle)
    assert dict(summary.dropped) == {"unsafe path": 1}
    crops = {n: c for n, c in files(tmp_path / "out").items() if n.endswith(".png")}
    assert {n: c for n, c in files(tmp_path / "zip/out").items() if n.endswith(".png")} == crops
    assert not list(tmp_path.rglob("evil*"))


def test_the_input_is_never_the_output(pictures, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(pictures)
    before = files(pictures)
    for out in (pictures, pictures / "out", link / "out", pictures / "happy/../out", tmp_path):
        with pytest.raises(InvalidOption, match="lies inside"):
            crop_folder(pictures, out, detector="none")
    out = tmp_path / "out"
    crop_folder(pictures, out, detector="none")
    (out / "happy/a.png").unlink()
    (out / "happy/b.png").unlink()
    (out / "happy").rmdir()
    (out / "happy").symlink_to(pictures / "happy")
    with pytest.raises(InvalidOption, match="leads out"):
        crop_folder(pictures, out, detector=make_detector("none"))
    assert files(pictures) == before


def test_a_link_from_the_input_to_the_output_is_not_followed(pictures, tmp_path):
    out = tmp_path / "out"
    crop_folder(pictures, out, detector="none")
    (pictures / "back").symlink_to(out)
    (pictures / "back_in").symlink_to(out / "happy")
    summary = crop_folder(pictures, out, detector="none")
    assert summary.kept == 4
    assert dict(summary.dropped) == {"link to the output": 2}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"several": "largst"}, UnknownChoice, "largest"),
        ({"no_face": "drp"}, UnknownChoice, "drop"),
        ({"color": "grey"}, UnknownChoice, "gray"),
        ({"padding": "edg"}, UnknownChoice, "edge"),
        ({"illumination": ["gama"]}, UnknownChoice, "gamma"),
        ({"illumination": ["lbp"], "color": "rgb"}, InvalidOption, "lbp"),
        ({"illumination": ["gamma", "histogram"], "color": "rgb"}, InvalidOption, "histogram"),
        ({"size": 0}, InvalidOption, "size"),
        ({"margin": -1}, InvalidOption, "margin"),
        ({"workers": 0}, InvalidOption, "workers"),
        ({"detector": "yunt"}, UnknownChoice, "yunet"),
        ({"detector": "none", "detector_options": {"weights": "x"}}, InvalidOption, "weights"),
        ({"detector": "auto", "detector_options": {"min_side": 9}}, InvalidOption, "auto"),
    ],
)
def test_bad_options_stop_before_anything_is_written(pictures, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        crop_folder(pictures, tmp_path / "out", **{"detector": "none", **options})
    assert not (tmp_path / "out").exists()


def test_nothing_to_crop(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("x")
    with pytest.raises(InvalidInput, match="no picture in"):
        crop_folder(tmp_path / "in", tmp_path / "out", detector="none")
    with pytest.raises(InvalidInput, match="no folder or zip"):
        crop_folder(tmp_path / "nothing", tmp_path / "out", detector="none")


def test_nonsense_from_a_users_detector_names_the_picture(pictures, tmp_path):
    with pytest.raises(InvalidInput, match=r"\.(png|jpg|bmp): the detector"):
        crop_folder(pictures, tmp_path / "out", detector=lambda image: 5)


def test_a_detector_that_fails_on_one_picture_is_told_and_asked_again(pictures, tmp_path):
    dark = np.asarray(Image.open(pictures / "sad/a.png"))

    def shaky(image):
        if np.array_equal(image[..., 0], dark):
            raise RuntimeError("(-215:Assertion failed)  in function\n'resize'")
        return middle(image)

    def named(detector):
        detector.name = "shaky"
        return detector

    out = tmp_path / "out"
    summary = crop_folder(pictures, out, detector=named(shaky))
    assert (summary.kept, dict(summary.dropped)) == (3, {"detector failed": 1})
    assert report(out)["sad/a.png"]["detail"] == (
        "the detector 'shaky' failed: RuntimeError: (-215:Assertion failed) in function 'resize'"
    )
    dark = np.zeros(0)
    summary = crop_folder(pictures, out, detector=named(shaky))
    assert (summary.kept, summary.resumed) == (4, 3)
    with pytest.raises(MemoryError):
        crop_folder(pictures, tmp_path / "out2", detector=lambda image: (_ for _ in ()).throw(MemoryError()))


def test_two_runs_do_not_mix(pictures, tmp_path):
    out, refused = tmp_path / "out", []

    def greedy(image):
        if not refused:
            try:
                crop_folder(pictures, out, detector=greedy)
            except InvalidOption as error:
                refused.append(str(error))
        return middle(image)

    assert crop_folder(pictures, out, detector=greedy, workers=1).kept == 4
    assert "another process is writing there" in refused[0]
    assert crop_folder(pictures, out, detector=greedy).resumed == 4


@pytest.mark.parametrize("packed", [False, True])
def test_ckplus_stays_ckplus(tmp_path, packed):
    """The labels of CK+'s original layout are files of their own; without them the crops could not be read."""
    from data import trees
    from ferattn.data import open_dataset

    root = trees.ck_original_tree(tmp_path / "ck")
    (root / "readme.txt").write_text("x")
    source = trees.zipped(root, tmp_path / "ck.zip") if packed else root
    summary = crop_folder(source, tmp_path / "out", detector="none", size=48)
    assert (summary.copied, dict(summary.dropped)) == (2, {"not a picture": 1})
    before, after = open_dataset(source), open_dataset(tmp_path / "out")
    assert (after.name, after.ids, after.classes, after.subjects) == (
        "CK+",
        before.ids,
        before.classes,
        before.subjects,
    )
    assert after.labels.tolist() == before.labels.tolist()
    assert after.read(0).shape == (1, 48, 48)
    again = crop_folder(source, tmp_path / "out", detector="none", size=48)
    assert (again.copied, again.kept) == (2, 18)


def test_best_needs_scores(pictures, tmp_path):
    with pytest.raises(InvalidOption, match="scores"):
        crop_folder(pictures, tmp_path / "out", detector=lambda image: [(0, 0, 5, 5)] * 2, several="best")


def test_a_shared_detector_is_called_by_one_worker_at_a_time(pictures, tmp_path):
    busy = threading.Lock()
    threads = set()

    def detector(image):
        assert busy.acquire(blocking=False)
        time.sleep(0.01)
        threads.add(threading.get_ident())
        busy.release()
        return middle(image)

    before = torch.get_num_threads()
    for seed in range(20):
        picture(pictures / f"{seed}.png", seed)
    crop_folder(pictures, tmp_path / "out", detector=detector, workers=4)
    assert len(threads) > 1
    assert torch.get_num_threads() == before


def test_workers_do_not_change_the_result(pictures, tmp_path):
    for workers in (1, 3):
        crop_folder(pictures, tmp_path / str(workers), detector="none", workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "3")


def test_progress_is_told(pictures, tmp_path):
    told = []
    crop_folder(
        pictures,
        tmp_path / "out",
        detector="none",
        on_start=lambda detector, total: told.append((detector, total)),
        on_done=told.append,
    )
    assert told == [("WholePicture()", 4), *["kept"] * 4]


SLOW = """
import sys, time
from ferattn.faces.folders import crop_folder
def slow(image):
    time.sleep(0.05)
    return [(5, 5, 20, 20)] if image.mean() > 127 else []
crop_folder(sys.argv[1], sys.argv[2], detector=slow, workers=2)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    for seed in range(40):
        picture(root / f"c{seed % 3}/{seed}.png", seed)
    script = tmp_path / "run.py"
    script.write_text(SLOW)
    command = [sys.executable, str(script), str(root), str(out)]
    partial = out / "crop_report.partial.csv"
    kills = 0
    for _ in range(2):
        process = subprocess.Popen(command, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        before = partial.read_bytes().count(b"\n") if partial.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if partial.exists() and partial.read_bytes().count(b"\n") > before + 5:
                process.kill()
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
    assert kills == 2
    assert not (out / "crop_report.csv").exists()
    done = partial.read_bytes().count(b"\n") - 1
    assert 10 < done < 40
    for path in out.rglob("*.png"):
        Image.open(path).load()  # none is half-written
    subprocess.run(command, check=True)
    rows = report(out)
    assert len(rows) == 40
    other = tmp_path / "other"
    crop_folder(root, other, detector=lambda image: [(5, 5, 20, 20)] if image.mean() > 127 else [])
    ours, fresh = files(out), files(other)
    assert ours.pop("crop_settings.json") != fresh.pop("crop_settings.json")  # another detector's name
    assert ours == fresh
    assert not partial.exists()


def test_real_pictures(fer2013_zip, yunet_onnx, tmp_path):
    with zipfile.ZipFile(fer2013_zip) as whole, zipfile.ZipFile(tmp_path / "some.zip", "w") as some:
        names = sorted(n for n in whole.namelist() if n.endswith(".jpg"))[::240]
        for name in names:
            some.writestr(name, whole.read(name))
    summary = crop_folder(
        tmp_path / "some.zip", tmp_path / "out", detector="yunet", detector_options={"weights": yunet_onnx}
    )
    assert summary.readable == len(names)
    assert 0.88 < summary.found_share < 0.98


def test_no_two_pictures_share_a_crop():
    from ferattn.faces.folders import _outputs
    from ferattn.faces.sources import Item

    names = ["a.jpg", "a.png", "a.jpg.png", "A.JPG.bmp", "b.png"]
    outputs = _outputs([Item(name=name, stamp="0") for name in names])
    assert len({output.casefold() for output in outputs.values()}) == len(names)
    assert outputs["b.png"] == "b.png"


def unless_black(image):
    return middle(image) if image.max() > 0 else []


def test_crops_that_are_nobodys_any_more_are_taken_away(pictures, tmp_path):
    out = tmp_path / "out"
    crop_folder(pictures, out, detector=unless_black, size=32)
    kept = {name for name in files(out) if name.endswith(".png")}
    (pictures / "sad/a.png").unlink()
    Image.fromarray(np.zeros((31, 40), dtype=np.uint8)).save(pictures / "happy/a.png")
    summary = crop_folder(pictures, out, detector=unless_black, size=32)
    assert summary.kept == 2
    assert kept - {name for name in files(out) if name.endswith(".png")} == {"happy/a.png", "sad/a.png"}
    assert set(report(out)) == {"happy/a.png", "happy/b.jpg", "sad/deep/c.bmp"}
