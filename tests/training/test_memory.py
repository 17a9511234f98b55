"""What is freed stays with the process for a while, and goes back afterwards."""

from __future__ import annotations

import platform

import pytest
import torch

from ferattn.training.memory import keep_freed_memory

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")

_BYTES = 96 * 2**20  # above 32 MiB, from which on glibc always asks the system


def _pages_asked_for() -> int:
    """How many pages the system had to give for one large tensor."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(_BYTES, dtype=torch.uint8).zero_()
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_freed_memory_is_kept_and_given_back() -> None:
    every = _pages_asked_for()
    if every < 1000:
        pytest.skip("another allocator, or huge pages: the default keeps what is freed")
    with keep_freed_memory():
        assert min(_pages_asked_for() for _ in range(5)) < every // 10
        held = _resident()
    assert _resident() < held - _BYTES // 2
    assert _pages_asked_for() > every // 2


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    every = _pages_asked_for()
    monkeypatch.setattr("sys.platform", "darwin")
    with keep_freed_memory():
        assert min(_pages_asked_for() for _ in range(5)) >= every // 2
