"""What is freed stays with the process for a while, and goes back afterwards."""

from __future__ import annotations

import platform

import pytest
import torch

from ferattn.training import memory
from ferattn.training.memory import keep_freed_memory

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")

_BYTES = 96 * 2**20  # above 32 MiB, from which on glibc always asks the system


def _pages_asked_for() -> int:
    """How many pages the system had to give for one large tensor."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(_BYTES, dtype=torch.uint8).zero_()
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def _memory(column: int) -> int:
    """Bytes of the process, by /proc/self/statm: 0 of addresses, 1 resident."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[column]) * int(resource.getpagesize())


@pytest.fixture
def every() -> int:
    """Pages for one large tensor where nothing is kept."""
    pages = _pages_asked_for()
    if pages < 1000:
        pytest.skip("another allocator, or huge pages: the default keeps what is freed")
    return pages


def test_freed_memory_is_kept_and_given_back(every: int) -> None:
    with keep_freed_memory():
        assert min(_pages_asked_for() for _ in range(5)) < every // 10
        held = _memory(1)
    assert _memory(1) < held - _BYTES // 2
    assert _pages_asked_for() > every // 2


def test_the_outermost_block_gives_back(every: int) -> None:
    with keep_freed_memory():
        with keep_freed_memory():
            pass
        assert min(_pages_asked_for() for _ in range(5)) < every // 10


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert memory._glibc() is None
    with keep_freed_memory():
        assert memory._inside == 0


@pytest.mark.usefixtures("every")
def test_any_amount_is_kept() -> None:
    with keep_freed_memory():
        before = _memory(0)
        torch.empty(3 * 2**30, dtype=torch.uint8)  # addresses alone
        assert _memory(0) > before + 2**31
