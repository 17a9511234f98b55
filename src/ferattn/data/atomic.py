"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ferattn.errors import InvalidOption

__all__ = ["write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path``, then put it in its place in one step.

    Raises:
        InvalidOption: If the file cannot be written there.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise InvalidOption(f"{path}: cannot be written ({error.strerror or error}).") from error
    try:
        # mkstemp makes private files; the result gets the rights that open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise InvalidOption(f"{path}: cannot be written ({error.strerror or error}).") from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
