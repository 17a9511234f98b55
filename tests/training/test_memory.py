"""What is freed stays with the process for a while, and goes back afterwards."""

from __future__ import annotations

import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from ferattn.training import memory
from ferattn.training.memory import keep_freed_memory

TRIM, THRESHOLD, MMAPS = -1, -3, -4  # of glibc's malloc.h

_MEASURE = """
import resource
import torch
from ferattn.training.memory import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(96 * 2**20, dtype=torch.uint8).zero_()  # above 32 MiB, from which on glibc always asks the system
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def memory(column):
    return int(open("/proc/self/statm").read().split()[column]) * resource.getpagesize()

before = pages()
with keep_freed_memory():
    inside = min(pages() for _ in range(5))
    held = memory(1)
    addresses = memory(0)
    torch.empty(3 * 2**30, dtype=torch.uint8)  # addresses alone
    more = memory(0) - addresses
print(before, inside, held, memory(1), more, pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")
def test_freed_memory_is_kept_and_given_back() -> None:
    """In a process of its own: what others have allocated and freed decides where a block comes from."""
    done = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True, timeout=200)
    before, inside, held, after, more, outside = map(int, done.stdout.split())
    if before < 1000:
        pytest.skip("another allocator, or huge pages: the default keeps what is freed")
    assert inside < before // 10
    assert after < held - 48 * 2**20
    assert more > 2**31  # any amount is kept
    assert outside > before // 2


class _Libc:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.state: dict[int, int] = {}
        self.trims = 0

    def mallopt(self, parameter: int, value: int) -> int:
        self.state[parameter] = value
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trims += 1
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> _Libc:
    written = _Libc()
    monkeypatch.setattr(memory, "_glibc", lambda: written)
    return written


def test_the_outermost_block_gives_back(libc: _Libc) -> None:
    def fail() -> None:
        with keep_freed_memory():
            with keep_freed_memory():
                assert libc.state == {MMAPS: 0, TRIM: -1}
            assert (libc.state, libc.trims) == ({MMAPS: 0, TRIM: -1}, 0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert libc.state == {MMAPS: 65536, TRIM: 64 * 2**20, THRESHOLD: 32 * 2**20}
    assert libc.trims == 1


def test_the_last_of_several_threads_gives_back(libc: _Libc) -> None:
    inside = Barrier(2)

    def keep() -> int:
        with keep_freed_memory():
            inside.wait(timeout=20)
            return libc.state[MMAPS]

    with ThreadPoolExecutor(2) as pool:
        seen = [future.result() for future in [pool.submit(keep) for _ in range(2)]]
    assert seen[0] == 0
    assert (libc.state[MMAPS], libc.trims) == (65536, 1)


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert memory._glibc() is None
    with keep_freed_memory():
        assert memory._inside == 0
