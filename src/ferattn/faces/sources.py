"""Where a crop run takes its pictures from: a folder, or a zip that is never unpacked.

Both list every file once, in a fixed order, and say of each that cannot be used why.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from ferattn.errors import InvalidInput, InvalidOption

__all__ = ["FolderSource", "Item", "Source", "ZipSource", "keep_apart", "open_source"]

_SUFFIX = re.compile(r"\.(bmp|gif|jp2|jpe|jpe?g|p[bgnp]m|png|tga|tiff?|webp)", re.IGNORECASE)
_MAX_BYTES = 512 * 2**20  # of one member of a zip, unpacked: a bomb is reported, not unpacked


@dataclass(frozen=True)
class Item:
    """One file of a source.

    Args:
        name: Its path within the source, with forward slashes.
        stamp: Changes when the file changes.
        problem: Why it cannot be used, or empty.
        detail: More about the problem.
    """

    name: str
    stamp: str = ""
    problem: str = ""
    detail: str = ""


class Source(Protocol):
    """Named pictures."""

    def items(self) -> list[Item]:
        """Every file, sorted by name."""
        ...

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            InvalidInput: If it cannot be read.
        """
        ...


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """A folder or a zip as a source.

    Raises:
        InvalidInput: If there is neither at ``path``.
    """
    if path.is_dir():
        yield FolderSource(path)
        return
    if not path.exists():
        raise InvalidInput(f"there is no folder or zip at {str(path)!r}")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        # A damaged directory makes zipfile raise BadZipFile, NotImplementedError, struct.error, ...
        raise InvalidInput(f"{str(path)!r} is neither a folder nor a readable zip: {error}") from error
    with archive:
        yield ZipSource(archive)


class FolderSource:
    """The files of a folder and its subfolders. Links are followed, but no folder is read twice.

    Args:
        root: The folder.
        avoid: A folder not to look into, wherever a link to it turns up: the output.
    """

    def __init__(self, root: Path, avoid: Path | None = None) -> None:
        self.root = root
        self.avoid = avoid

    def items(self) -> list[Item]:
        """Every file that is not hidden, sorted by name."""
        found: list[Item] = []
        seen: set[tuple[int, int]] = set()
        # Real folders before links to folders, so that a picture is listed under its real name.
        folders, links = [self.root], list[Path]()
        while folders or links:
            folder = folders.pop() if folders else links.pop(0)
            name = folder.relative_to(self.root).as_posix()
            try:
                if self.avoid is not None and folder.resolve().is_relative_to(self.avoid):
                    found.append(Item(name, problem="link to the output"))
                    continue
                status = folder.stat()
                if (status.st_dev, status.st_ino) in seen:
                    found.append(Item(name, problem="folder read already", detail="a link, perhaps a loop"))
                    continue
                seen.add((status.st_dev, status.st_ino))
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                if folder == self.root:
                    reason = error.strerror
                    raise InvalidInput(f"cannot list the folder {str(folder)!r}: {reason}") from error
                found.append(Item(name, problem="unreadable", detail=str(error.strerror)))
                continue
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_symlink() and path.is_dir():
                    links.append(path)
                else:
                    found.append(self._item(path))
        return sorted(found, key=lambda item: item.name)

    def _item(self, path: Path) -> Item:
        name = path.relative_to(self.root).as_posix()
        try:
            status = path.stat()
        except OSError as error:
            return Item(name, problem="unreadable", detail=str(error.strerror))
        if not stat.S_ISREG(status.st_mode):
            return Item(name, problem="not a picture", detail="not a regular file")
        if not _SUFFIX.fullmatch(path.suffix):
            return Item(name, problem="not a picture", detail=f"suffix {path.suffix!r}")
        return Item(name, f"{status.st_size}-{status.st_mtime_ns}")

    def read(self, name: str) -> bytes:
        """The content of one file."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise InvalidInput(f"cannot read {name!r}: {error.strerror}") from error


class ZipSource:
    """The members of a zip, read where they are."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive

    def items(self) -> list[Item]:
        """Every member that is a file and not hidden, sorted by name."""
        found: dict[str, Item] = {}
        for info in self.archive.infolist():
            parts = PurePosixPath(info.filename).parts
            climbs = not parts or ".." in parts or info.filename.startswith("/") or "\\" in info.filename
            if climbs or re.match(r"[A-Za-z]:", info.filename):
                found[info.filename] = Item(info.filename, problem="unsafe path", detail="it leaves the folder")
            elif info.is_dir() or parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts):
                continue
            else:
                name = PurePosixPath(*parts).as_posix()
                # The archive itself gives the last one of several members of one name; so do we.
                found[name] = self._item(name, info)
        return sorted(found.values(), key=lambda item: item.name)

    def _item(self, name: str, info: zipfile.ZipInfo) -> Item:
        suffix = PurePosixPath(name).suffix
        if not _SUFFIX.fullmatch(suffix):
            return Item(name, problem="not a picture", detail=f"suffix {suffix!r}")
        if info.file_size > _MAX_BYTES:
            return Item(name, problem="unreadable", detail=f"{info.file_size} bytes unpacked")
        return Item(name, f"{info.file_size}-{info.CRC:08x}")

    def read(self, name: str) -> bytes:
        """The content of one member."""
        try:
            with self.archive.open(name) as member:
                # One byte more than promised, so that a header that lies about the size is noticed.
                data = member.read(_MAX_BYTES + 1)
        except Exception as error:
            # zipfile raises BadZipFile, RuntimeError (encrypted), NotImplementedError, zlib.error, ...
            raise InvalidInput(f"cannot read {name!r} from the zip: {error}") from error
        if len(data) > _MAX_BYTES:
            raise InvalidInput(f"{name!r} unpacks to more than {_MAX_BYTES} bytes")
        return data


def keep_apart(root: Path, folder: Path) -> None:
    """Refuse an output inside the input, and an input inside the output.

    Raises:
        InvalidOption: If one lies in the other.
    """
    source, output = root.resolve(), folder.resolve()
    if output == source or output.is_relative_to(source):
        raise InvalidOption(f"the output {str(folder)!r} lies inside the input {str(root)!r}; give another one")
    if source.is_relative_to(output):
        raise InvalidOption(f"the input {str(root)!r} lies inside the output {str(folder)!r}; give another one")
