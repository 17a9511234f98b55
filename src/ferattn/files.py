"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ferattn.errors import InvalidOption

__all__ = ["TEMPORARY", "alone", "lock_file", "write_atomically"]

TEMPORARY = ".part"
"""How the name of an unfinished file ends; one that is left belongs to a process that was killed."""


def write_atomically(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Write a temporary file beside ``path``, then put it in its place in one step.

    Args:
        path: The file, new or to be replaced.
        content: Bytes, or text that is written as UTF-8.
        durable: Wait until the bytes are on the disk, so that a power cut cannot leave an empty file behind; leave it
            out for thousands of small files that can be made again.

    Raises:
        InvalidOption: If the file cannot be written there; names it, and why.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=TEMPORARY)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        # mkstemp makes private files; the result gets the rights that open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InvalidOption(f"{path}: cannot be written ({error.strerror or error}).") from error
        raise


def lock_file(handle: int) -> None:
    """Lock an open file for this process, until it is closed or the process ends.

    Raises:
        OSError: If another process has it, or this one through another handle.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def alone(folder: Path, lock: str) -> Iterator[None]:
    """Be the only process that writes to a folder; what a killed one left unfinished is cleared away.

    The lock is the operating system's and goes with the process that holds it, however that ends. On a file system
    that has no locks there is none.

    Args:
        folder: It exists.
        lock: Name of a file in it, which is there while the folder is locked.

    Raises:
        InvalidOption: If another process has it, or the file cannot be made.
    """
    path = folder / lock
    while True:
        try:
            file = path.open("a")
        except OSError as error:
            raise InvalidOption(f"{path}: cannot be written ({error.strerror or error}).") from error
        try:
            lock_file(file.fileno())
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                file.close()
                raise InvalidOption(f"{folder}: another process is writing there; wait for its end.") from error
        try:
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        except FileNotFoundError:
            pass
        file.close()  # the file was deleted by a process that ended just now: it locks nothing any more
    try:
        for left in folder.rglob(f".*{TEMPORARY}"):
            left.unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file
            path.unlink()
        file.close()
