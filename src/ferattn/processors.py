"""What processor this is, and what it computes slowly."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

__all__ = ["emulates_bfloat16", "processor_name"]


def processor_name() -> str:
    """The processor as the system names it, such as ``"AMD EPYC"``; its architecture where it has no name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def emulates_bfloat16() -> bool:
    """Whether PyTorch's convolutions in bfloat16 run on this CPU without vector instructions that could carry them.

    That is so on x86 below AVX-512: they go one number at a time then, many times slower than in float32.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
