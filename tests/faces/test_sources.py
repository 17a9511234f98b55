import contextlib
import io
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferattn.errors import InvalidInput
from ferattn.faces.sources import FolderSource, ZipSource, open_source


def by_name(source):
    return {item.name: item for item in source.items()}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    for name in ("happy/a.png", "happy/deep/b.JPG", "sad/c.tiff", "notes.txt", ".hidden.png", ".git/d.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_a_folder_lists_every_file_once_in_order(folder):
    items = FolderSource(folder).items()
    assert [item.name for item in items] == ["happy/a.png", "happy/deep/b.JPG", "notes.txt", "sad/c.tiff"]
    assert [item.problem for item in items] == ["", "", "not a picture", ""]
    assert FolderSource(folder).read("sad/c.tiff") == b"sad/c.tiff"


def test_the_stamp_follows_the_file(folder):
    before = by_name(FolderSource(folder))["happy/a.png"].stamp
    (folder / "happy/a.png").write_bytes(b"other")
    assert by_name(FolderSource(folder))["happy/a.png"].stamp != before


def test_symlink_loops_end_and_are_reported(folder):
    (folder / "happy/loop").symlink_to(folder)
    (folder / "self.png").symlink_to("self.png")
    (folder / "again").symlink_to(folder / "sad")
    (folder / "gone.png").symlink_to("nothing.png")
    items = by_name(FolderSource(folder))
    assert items["happy/loop"].problem == "folder read already"
    assert items["again"].problem == "folder read already"
    assert items["self.png"].problem == items["gone.png"].problem == "unreadable"
    assert sum(not item.problem for item in items.values()) == 3


def test_links_to_folders_elsewhere_are_followed(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "e.png").write_bytes(b"e")
    (folder / "linked").symlink_to(other)
    assert not by_name(FolderSource(folder))["linked/e.png"].problem
    assert by_name(FolderSource(folder, avoid=other))["linked"].problem == "link to the output"


def test_pipes_are_not_opened(folder):
    os.mkfifo(folder / "pipe.png")
    assert by_name(FolderSource(folder))["pipe.png"].problem == "not a picture"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_locked_folder_is_reported(folder):
    (folder / "sad").chmod(0)
    assert by_name(FolderSource(folder))["sad"].problem == "unreadable"
    (folder / "sad").chmod(0o755)


def test_a_file_that_vanished(folder):
    with pytest.raises(InvalidInput, match=r"nothing\.png"):
        FolderSource(folder).read("nothing.png")


def zipped(tmp_path, names) -> Path:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name.encode())
    return path


def test_a_zip_is_read_in_place_and_climbing_paths_are_reported(tmp_path):
    climbing = ["../up.png", "a/../../up.png", "/abs.png", "C:/drive.png", "a\\..\\b.png", "."]
    good = ["happy/a.png", "./sad/b.jpg", "readme.md", "__MACOSX/happy/a.png", "happy/.c.png", "empty/"]
    with open_source(zipped(tmp_path, [*climbing, *good])) as source:
        items = by_name(source)
        assert {name for name, item in items.items() if item.problem == "unsafe path"} == set(climbing)
        assert {name for name, item in items.items() if not item.problem} == {"happy/a.png", "sad/b.jpg"}
        assert items["readme.md"].problem == "not a picture"
        assert source.read("happy/a.png") == b"happy/a.png"


def test_damaged_members_are_our_error(tmp_path):
    path = zipped(tmp_path, ["a.png"])
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a.png", b"a.pnG", 1).replace(b"a.png", b"XXXXX", 1))
    with zipfile.ZipFile(path) as archive, pytest.raises(InvalidInput, match="cannot read"):
        ZipSource(archive).read(archive.namelist()[0])


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.png", b"picture" * 9)
        archive.writestr("c.png", b"another")
    return buffer.getvalue()


@settings(max_examples=100, deadline=None)
@given(position=st.floats(0, 1), patch=st.binary(min_size=1, max_size=6), cut=st.booleans())
def test_damaged_zips_are_read_or_our_error(tmp_path_factory, position, patch, cut):
    content = _archive()
    at = int(position * len(content))
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    path.write_bytes(content[:at] + patch + (b"" if cut else content[at + len(patch) :]))
    with contextlib.suppress(InvalidInput), open_source(path) as source:
        for item in source.items():
            with contextlib.suppress(InvalidInput):
                source.read(item.name)


def test_neither_folder_nor_zip(tmp_path):
    with pytest.raises(InvalidInput, match="no folder or zip"), open_source(tmp_path / "nothing"):
        pass
    (tmp_path / "text").write_text("x")
    with (
        pytest.raises(InvalidInput, match="neither a folder nor a readable zip"),
        open_source(tmp_path / "text"),
    ):
        pass
