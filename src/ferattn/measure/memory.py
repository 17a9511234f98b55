"""Peak memory of one call: from torch's allocator on CUDA, from the operating system on a Linux CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["peak_extra_bytes"]


def peak_extra_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that ``call`` needs at its peak beyond what was held before it; None where nobody keeps count.

    On CUDA these are the allocator's bytes. On a CPU it is the resident memory of the process, in pages and
    with what libraries such as oneDNN take for themselves; only Linux can reset its high-water mark.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return max(0, torch.cuda.max_memory_allocated(device) - before)
    if device.type == "cpu":
        _return_free_pages()
        if not _reset_high_water_mark():
            return None
        before = _status_bytes("VmRSS")
        call()
        return max(0, _status_bytes("VmHWM") - before)
    return None


def _return_free_pages() -> None:
    """Hand freed memory back to the system, or a second run would seem to need none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if Path("/proc/self").exists() else None
    if trim is not None:
        trim(0)


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0
