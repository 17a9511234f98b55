"""A folder or a zip as one list of file names; nothing is ever unpacked to disk."""

from __future__ import annotations

import lzma
import os
import struct
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Protocol

from ferattn.data.problems import Problems
from ferattn.errors import InvalidInput

__all__ = ["Folder", "Source", "Zip", "open_source"]

MAX_IMAGE_BYTES = 256 * 2**20
"""A member of a zip that claims to be larger is not read into memory as an image."""


_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
)


class Source(Protocol):
    """Files by name: relative, with forward slashes, sorted."""

    root: Path
    names: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """The content of one file."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """One file as a stream."""
        ...


def open_source(root: str | os.PathLike[str], problems: Problems) -> Source:
    """The files under ``root``, which is a folder, a zip, or a single file.

    Hidden files and ``__MACOSX`` are left out.

    Raises:
        InvalidInput: If ``root`` does not exist or is a damaged zip; also for a link that runs in a circle or
            a zip member whose path leaves the archive, where ``problems`` are to be raised.
    """
    path = Path(root)
    try:
        if path.is_dir():
            return Folder(path, problems)
        if not path.exists():
            raise InvalidInput(f"root={str(root)!r}: there is no such folder or file.")
        if zipfile.is_zipfile(path):
            return Zip(path, problems)
        if path.suffix.lower() == ".zip":
            raise InvalidInput(f"{path}: not a readable zip archive (damaged or cut off?).")
        return Folder(path.parent, problems, only=path.name)
    except OSError as error:
        raise InvalidInput(f"root={str(root)!r}: {error.strerror or error}.") from error
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"root={str(root)!r}: not a path ({error}).") from error


def _hidden(parts: tuple[str, ...] | list[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


class Folder:
    """The files of a folder, links followed, circles reported.

    Args:
        root: The folder.
        problems: Where a link that runs in a circle is reported.
        only: The one file to show, where a single file was given.
    """

    def __init__(self, root: Path, problems: Problems, only: str | None = None) -> None:
        self.root = root
        self.names: tuple[str, ...] = (only,) if only is not None else tuple(sorted(self._walk(problems)))

    def _walk(self, problems: Problems) -> list[str]:
        names: list[str] = []
        stack: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
        while stack:
            relative, above = stack.pop()
            folder = self.root / relative
            try:
                status = folder.stat()
                identity = (status.st_dev, status.st_ino)
                if identity in above:
                    problems.add(str(folder), "a link to a folder that contains it (the links run in a circle).")
                    continue
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                problems.add(str(folder), f"cannot be listed ({error.strerror or error}).")
                continue
            for entry in entries:
                if _hidden([entry.name]):
                    continue
                name = f"{relative}/{entry.name}" if relative else entry.name
                try:
                    if entry.is_dir():
                        stack.append((name, above | {identity}))
                    elif entry.is_file():
                        names.append(name)
                    else:
                        problems.add(str(self.root / name), "neither a file nor a folder (a broken link?).")
                except OSError as error:
                    problems.add(str(self.root / name), f"cannot be followed ({error.strerror or error}).")
        return names

    def read(self, name: str) -> bytes:
        """The content of one file."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise InvalidInput(f"{self.root / name}: cannot be read ({error.strerror or error}).") from error

    def open(self, name: str) -> IO[bytes]:
        """One file as a stream."""
        try:
            return (self.root / name).open("rb")
        except OSError as error:
            raise InvalidInput(f"{self.root / name}: cannot be read ({error.strerror or error}).") from error


class Zip:
    """The members of a zip, read in place; may be pickled and used after a fork.

    Args:
        root: The archive.
        problems: Where members with a path that leaves the archive, encrypted ones and repeated names are
            reported.
    """

    def __init__(self, root: Path, problems: Problems) -> None:
        self.root = root
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        self._lock = threading.Lock()
        names: dict[str, None] = {}
        for info in self._zip().infolist():
            name = info.filename
            parts = name.replace("\\", "/").split("/")
            if info.is_dir():
                continue
            if name.startswith(("/", "\\")) or ".." in parts or (len(name) > 1 and name[1] == ":"):
                problems.add(f"{root}:{name}", "a path that leaves the archive.")
            elif _hidden(parts):
                continue
            elif info.flag_bits & 1:
                problems.add(f"{root}:{name}", "is encrypted.")
            elif name in names:
                problems.add(f"{root}:{name}", "is in the archive twice; the last one is read.")
            else:
                names[name] = None
        self.names: tuple[str, ...] = tuple(sorted(names))

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.root, self.names = state["root"], state["names"]
        self._handle, self._lock = None, threading.Lock()

    def _zip(self) -> zipfile.ZipFile:
        # A forked worker must not share the parent's file position, hence one handle per process.
        with self._lock:
            if self._handle is None or self._handle[0] != os.getpid():
                try:
                    self._handle = (os.getpid(), zipfile.ZipFile(self.root))
                except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                    raise InvalidInput(f"{self.root}: not a readable zip archive ({error}).") from error
            return self._handle[1]

    def read(self, name: str) -> bytes:
        """The content of one member."""
        archive = self._zip()
        try:
            info = archive.getinfo(name)
            if info.file_size > MAX_IMAGE_BYTES:
                raise InvalidInput(f"{self.root}:{name}: {info.file_size} bytes is too large for an image.")
            return archive.read(info)
        except InvalidInput:
            raise
        except _DAMAGE as error:
            raise InvalidInput(f"{self.root}:{name}: cannot be read ({error}).") from error

    def open(self, name: str) -> IO[bytes]:
        """One member as a stream."""
        try:
            return self._zip().open(name)
        except _DAMAGE as error:
            raise InvalidInput(f"{self.root}:{name}: cannot be read ({error}).") from error
