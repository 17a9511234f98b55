"""Files appear whole or not at all, whatever goes wrong; a lock goes with its process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ferattn.errors import InvalidOption
from ferattn.files import lock_file, write_atomically


def test_a_file_gets_the_rights_of_any_new_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "text \u00e4")
    (tmp_path / "b").write_text("text")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "text \u00e4"
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("durable", [True, False])
def test_bytes_reach_the_disk_before_the_name_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    calls: list[str] = []
    sync, move = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), sync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("move"), move(*paths))[1])
    write_atomically(tmp_path / "a", b"x", durable=durable)
    assert calls == (["sync", "move"] if durable else ["move"])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_atomically(tmp_path / "a", b"first")

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    expected = InvalidOption if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match=r"a: cannot be written \(No space" if isinstance(error, OSError) else None):
        write_atomically(tmp_path / "a", b"second")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"first"


def test_no_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"a: cannot be written \(No such file or directory"):
        write_atomically(tmp_path / "missing" / "a", b"")


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of POSIX")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """The system itself refuses the bytes: a limit on the size of files, in a process of its own."""
    script = (
        "import resource, pathlib\n"
        "from ferattn.files import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"write_atomically(pathlib.Path({str(tmp_path / 'a')!r}), bytes(2000))\n"
    )
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert "cannot be written (File too large)" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_lock_is_held_once_and_goes_with_its_handle(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as first, (tmp_path / "lock").open("a") as second:
        lock_file(first.fileno())
        with pytest.raises(OSError):
            lock_file(second.fileno())
        first.close()
        lock_file(second.fileno())
