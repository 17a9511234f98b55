"""Files that commands write: checked before the work starts, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ferattn.errors import InvalidOption

__all__ = ["require_writable", "write_text"]


def require_writable(option: str, path: Path | None) -> None:
    """Complain now, and not after minutes of work, about a path that cannot become a file.

    Raises:
        InvalidOption: If it is a folder, or in a folder that does not exist or cannot be written to.
    """
    if path is None:
        return
    if path.is_dir():
        raise InvalidOption(f"{option} {str(path)!r} is a folder; give the path of a file")
    if not path.parent.is_dir():
        raise InvalidOption(f"{option} {str(path)!r}: there is no folder {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK):
        raise InvalidOption(f"{option} {str(path)!r}: the folder {str(path.parent)!r} cannot be written to")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; it gets the permissions of any new file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
