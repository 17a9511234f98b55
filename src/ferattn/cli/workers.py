"""Processes that train one run after another, so that Python, the GPU and the images are made ready once for many.

``python -m ferattn.cli.workers`` is such a process: it reads a line for each run, the words of ``ferattn train`` as
JSON, and answers with a line when the run is over. A run that fails for a reason of ours costs nothing but itself;
after any other error the process ends and another takes its place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from ferattn.cli.jobs import Job
    from ferattn.data import FaceDataset
    from ferattn.training import Recipe

__all__ = ["Plan", "carry_out_all", "gpus", "job_of", "threads"]

_MARGIN = 1.15  # what a run may take longer than the longest one like it


@dataclass
class Plan:
    """Runs to do, and what is known of how long they take.

    Attributes:
        jobs: The words of ``ferattn train`` by the run's name, in the order in which they are wanted.
        kinds: What takes about as long, by the run's name.
        seconds: How long runs of each kind took so far.
        deadline: On ``time.monotonic``'s clock; None for none.
    """

    jobs: dict[str, list[str]]
    kinds: Mapping[str, str]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    deadline: float | None = None

    def next(self) -> str | None:
        """The next run that can be expected to be over in time; takes it out."""
        for name in self.jobs:
            if self._fits(name):
                return name
        return None

    def _fits(self, name: str) -> bool:
        if self.deadline is None:
            return True
        like = self.seconds.get(self.kinds[name]) or [longest for some in self.seconds.values() for longest in some]
        return time.monotonic() + _MARGIN * max(like, default=0.0) < self.deadline


def gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()  # asks the driver, and takes no memory of the GPU
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def threads(workers: int) -> int:
    """Threads for each of so many processes, so that all together they have one for each core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def carry_out_all(plan: Plan, workers: int, done: Callable[[str, str | None], None]) -> list[str]:
    """Do all runs of a plan, several at a time.

    Args:
        plan: Runs that were begun or left out stay in it.
        workers: Processes.
        done: Called after each run with its name, and what went wrong, or None.

    Returns:
        The names of the runs that were begun and stopped at the deadline; they can be taken up again.
    """
    lock, stopped = threading.Lock(), []
    devices, started = gpus(), []

    def work(number: int) -> None:
        worker: _Worker | None = None
        while True:
            with lock:
                name = plan.next()
                words = None if name is None else plan.jobs.pop(name)
            if name is None or words is None:
                break
            start = time.monotonic()
            if worker is None:
                worker = _Worker(devices[number % len(devices)] if devices else None, threads(workers))
                started.append(worker)
            said = worker.carry_out(words, None if plan.deadline is None else plan.deadline - time.monotonic())
            with lock:
                if said == _LATE:
                    stopped.append(name)
                else:
                    if said is None:
                        plan.seconds.setdefault(plan.kinds[name], []).append(time.monotonic() - start)
                    done(name, said)
            if not worker.alive:
                worker = None
        if worker is not None:
            worker.end()

    pool = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(workers)]
    try:
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
    finally:
        for worker in started:
            worker.end()
    return stopped


_LATE = "late"


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, device: str | None, cpu_threads: int) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"), str(cpu_threads))
        environment = {**threads, **os.environ}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ferattn.cli.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        self._orders, self._answers = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def carry_out(self, words: Sequence[str], seconds: float | None) -> str | None:
        """What went wrong with a run, None if nothing; ``_LATE`` if it took longer than that and was stopped."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        watchdog = None if seconds is None else threading.Timer(max(0.0, seconds), stop)
        if watchdog is not None:
            watchdog.daemon = True
            watchdog.start()
        answer = ""
        try:
            self._orders.write(json.dumps(list(words)) + "\n")
            self._orders.flush()
            answer = self._answers.readline()
        except OSError:
            pass  # it has died: told below
        finally:
            if watchdog is not None:
                watchdog.cancel()
        if answer:
            told: str | None = json.loads(answer)["error"]
            return told
        code = self._process.wait()
        if late.is_set():
            return _LATE
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with code {code}"

    def end(self) -> None:
        """Stop the process, whatever it does."""
        if self.alive:
            self._process.kill()
        self._process.wait()
        for stream in (self._orders, self._answers, self._errors):
            with suppress(OSError):
                stream.close()


def job_of(words: Sequence[str]) -> Job:
    """What words of ``ferattn train`` ask for.

    Raises:
        InvalidOption: If they are no options of it.
    """
    import typer.main

    from ferattn.cli.app import app
    from ferattn.cli.jobs import Job
    from ferattn.errors import InvalidOption

    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    try:
        options: dict[str, Any] = command.make_context("train", list(words)).params
    except Exception as mistake:
        if not hasattr(mistake, "format_message"):  # typer's for words that are no options
            raise
        raise InvalidOption(mistake.format_message()) from mistake
    return Job(**options)


def main() -> None:
    """The process's side."""
    import gc

    import torch

    from ferattn.cli.jobs import carry_out
    from ferattn.data import open_dataset
    from ferattn.errors import FerattnError
    from ferattn.training import store

    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    opened: dict[Any, FaceDataset] = {}

    def opener(path: Path, kind: str, recipe: Recipe) -> FaceDataset:
        key = (path, kind, recipe.size, recipe.channels)
        if key not in opened:
            opened.clear()
            opened[key] = store(open_dataset(path, kind), recipe.size, recipe.channels)
        return opened[key]

    for line in sys.stdin:
        error = None
        try:
            job = job_of(json.loads(line))
            carry_out(job, opener if job.limit is None else None)  # a smoke run needs a few images only
        except FerattnError as mistake:
            error = str(mistake)
        gc.collect()
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
