"""Files that commands write: checked before the work starts, and written whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ferattn.errors import InvalidOption
from ferattn.files import write_atomically

__all__ = ["require_writable", "write_json"]


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


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write a JSON file where one was asked for."""
    if path is not None:
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
