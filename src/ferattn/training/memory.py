"""Freed memory that the process keeps: training on a CPU frees and asks for the same activations at every step."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keep_freed_memory"]

# glibc's malloc.h and malloc.c: parameters of mallopt, an int each, and what they are where nobody sets them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = -1
_DEFAULT_MMAP_MAX = 65536
# Where glibc's own adjustment ends in a process that has freed large blocks: its largest threshold, and twice that.
_LARGEST_MMAP_THRESHOLD = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)

_lock = threading.Lock()
_inside = 0


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let glibc keep what the process frees until the end of the block, and then give it back.

    By default blocks above 32 MiB come from the system and go back to it, so that at every step the system
    clears and maps each page of the large activations again. Without glibc (macOS, Windows, musl) nothing is done.
    Another allocator, such as one from ``LD_PRELOAD``, is not touched. Afterwards glibc's thresholds stay at the
    values that they adapt to in a process with large blocks, whatever ``MALLOC_`` variables said.
    """
    global _inside
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _inside += 1
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                libc.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
                libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
                libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
                libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
