"""What it is worth on a CPU that a run keeps the memory it has freed: a training step of Luo's CNN, both ways.

python benchmarks/freed_memory.py --json benchmarks/results/freed-memory.json

Each measurement is a process of its own, since glibc adapts to what a process has freed; the two ways take turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F

from ferattn import create_model
from ferattn.processors import processor_name
from ferattn.training.memory import keep_freed_memory

_FER2013_TRAINING_IMAGES = 28_709


def steps(kept: bool, batch: int, number: int) -> dict[str, float]:
    """Median seconds, and mean system seconds and pages, of a step of SGD in bf16 and channels_last."""
    torch.manual_seed(0)
    model = create_model("cnn_se", num_classes=7, in_chans=1, norm_layer="batchnorm2d")
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True)
    images, labels = torch.randn(batch, 1, 48, 48), torch.randint(0, 7, (batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    with keep_freed_memory() if kept else nullcontext():
        for _ in range(3):
            step()
        seconds, before = [], resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(number):
            start = perf_counter()
            step()
            seconds.append(perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": statistics.median(seconds),
        "system_seconds": (after.ru_stime - before.ru_stime) / number,
        "pages": (after.ru_minflt - before.ru_minflt) / number,
    }


def main() -> None:
    """Measure in processes that take turns, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("kept", "given-back"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(steps(asked.only == "kept", asked.batch, asked.steps)))
        return
    found: dict[str, list[dict[str, float]]] = {"given-back": [], "kept": []}
    for _ in range(asked.rounds):
        for way, samples in found.items():
            command = [
                sys.executable,
                __file__,
                "--only",
                way,
                "--batch",
                str(asked.batch),
                "--steps",
                str(asked.steps),
            ]
            samples.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    pairs = zip(found["given-back"], found["kept"], strict=True)
    faster = sorted(before["seconds"] / after["seconds"] for before, after in pairs)
    for way, samples in found.items():
        middle = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
        epoch = middle["seconds"] / asked.batch * _FER2013_TRAINING_IMAGES
        own, system = 1e3 * middle["seconds"], 1e3 * middle["system_seconds"]
        print(
            f"{way:10} {own:6.0f} ms a step, {system:4.0f} ms of the system (over all threads), "
            f"{middle['pages']:8.0f} pages; {epoch:4.0f} s for FER2013's training images"
        )
    spread = f"{faster[0]:.2f} to {faster[-1]:.2f} over {asked.rounds}"
    print(f"kept: {statistics.median(faster):.2f} times as fast ({spread})")
    if asked.json:
        about = {
            "torch": torch.__version__,
            "processor": processor_name(),
            "libc": " ".join(platform.libc_ver()),
            "threads": torch.get_num_threads(),
        }
        content = {"batch": asked.batch, "steps": asked.steps, **about, "faster": faster, "samples": found}
        asked.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
