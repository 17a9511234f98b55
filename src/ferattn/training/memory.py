"""Freed memory that the process keeps: training on a CPU frees and asks for the same activations at every step."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keep_freed_memory"]

# glibc's malloc.h: parameters of mallopt, an int each.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
# Where glibc's own adjustment ends in a process that has freed large blocks: its largest threshold, and twice that.
_LARGEST_MMAP_THRESHOLD = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let glibc keep what is freed until the end of the block, and then give it back.

    By default blocks above 32 MiB come from the system and go back to it, so that at every step the system
    clears and maps each page of the large activations again. Without glibc (macOS, Windows, musl) nothing is done.
    Another allocator, such as one from ``LD_PRELOAD``, is not touched.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _NEVER)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
