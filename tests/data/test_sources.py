import pickle
import warnings
import zipfile

import pytest

from data.trees import write
from ferattn.data.problems import Problems
from ferattn.data.sources import open_source
from ferattn.errors import InvalidInput, UnknownChoice


def test_a_folder_and_its_zip_show_the_same_names_and_bytes(tmp_path):
    for name in ("b/2.png", "a/1.png", ".hidden", "__MACOSX/x.png"):
        write(tmp_path / "tree" / name, name.encode())
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        for path in (tmp_path / "tree").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "tree"))
    for source in (
        open_source(tmp_path / "tree", Problems("raise")),
        open_source(tmp_path / "t.zip", Problems("raise")),
    ):
        assert source.names == ("a/1.png", "b/2.png")
        assert source.read("a/1.png") == b"a/1.png"
        with source.open("b/2.png") as stream:
            assert stream.read() == b"b/2.png"


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"])
def test_zip_members_that_climb_out_are_reported_and_the_rest_goes_on(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr(name, b"x")
        archive.writestr("good.png", b"y")
    with pytest.raises(InvalidInput, match=r"evil.*leaves the archive"):
        open_source(tmp_path / "t.zip", Problems("raise"))
    problems = Problems("skip")
    assert open_source(tmp_path / "t.zip", problems).names == ("good.png",)
    assert "evil" in problems.skipped[0].name
    assert not list(tmp_path.glob("**/evil*"))


def test_links_in_a_circle_are_reported_and_the_rest_goes_on(tmp_path):
    write(tmp_path / "root/a/1.png", b"1")
    (tmp_path / "root/a/loop").symlink_to(tmp_path / "root", target_is_directory=True)
    (tmp_path / "root/self").symlink_to("self")
    (tmp_path / "root/b").symlink_to(tmp_path / "root/a", target_is_directory=True)
    problems = Problems("skip")
    source = open_source(tmp_path / "root", problems)
    assert "a/1.png" in source.names
    assert "b/1.png" in source.names  # a link elsewhere is followed
    reasons = " ".join(entry.reason for entry in problems.skipped)
    assert "circle" in reasons
    with pytest.raises(InvalidInput, match=r"circle|link|followed"):
        open_source(tmp_path / "root", Problems("raise"))


def test_broken_archives_and_missing_roots(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.png", b"some content that has a checksum")
    content = bytearray((tmp_path / "t.zip").read_bytes())
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidInput, match=r"cut\.zip.*not a readable zip"):
        open_source(tmp_path / "cut.zip", Problems("raise"))
    content[40] ^= 0xFF
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"a\.png"):
        open_source(tmp_path / "bad.zip", Problems("raise")).read("a.png")
    for root in (tmp_path / "nowhere", "\0", "x" * 5000):
        with pytest.raises(InvalidInput, match="root"):
            open_source(root, Problems("raise"))
    with pytest.raises(UnknownChoice, match="on_error 'ignore'"):
        Problems("ignore")


def test_a_name_twice_in_a_zip_is_reported(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
            archive.writestr("a.png", b"1")
            archive.writestr("a.png", b"2")
    problems = Problems("skip")
    assert open_source(tmp_path / "t.zip", problems).names == ("a.png",)
    assert "twice" in problems.skipped[0].reason


def test_a_zip_source_survives_pickling(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.png", b"1")
    source = open_source(tmp_path / "t.zip", Problems("raise"))
    assert source.read("a.png") == pickle.loads(pickle.dumps(source)).read("a.png") == b"1"
