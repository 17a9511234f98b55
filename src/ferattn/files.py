"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from ferattn.errors import InvalidOption

__all__ = ["TEMPORARY", "lock_file", "write_atomically"]

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
