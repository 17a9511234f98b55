"""What processor this is, and what it computes slowly."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

__all__ = ["is_slow_in_bfloat16", "processor_name"]


def processor_name() -> str:
    """The processor as the system names it, such as ``"AMD EPYC"``; its architecture where it has no name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def is_slow_in_bfloat16() -> bool:
    """Whether PyTorch has only a slow way to convolve in bfloat16 on this CPU: so it is on x86 without AVX-512.

    oneDNN's kernels need AVX-512 there, and the convolutions in their place take many times as long as in float32.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
