"""Everything about cost that needs a GPU, in one command: the kernels' tests, blocks, tails and whole models.

    PYTHONPATH=src python benchmarks/gpu_costs.py --out costs --minutes 9.5

Each part runs in a process of its own with a share of the time. A part that is cut short leaves the rows it has
measured, and the same command goes on from there. ``costs/summary.json`` says how each part ended. ``--smoke`` does
all of it at the smallest size, on the CPU where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BENCH = (sys.executable, "-m", "ferattn", "bench")
SHARED = ("--dtype", "bfloat16", "--channels-last")

# Name, share of the time, command without device, sizes and file.
PARTS: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("tests", 0.18, (sys.executable, "-m", "pytest", "-q", "-n", "8", "-m", "gpu", "tests/kernels", "tests/measure")),
    ("tails", 0.28, (*BENCH, "tails", *SHARED)),
    ("models", 0.16, (*BENCH, "resnet50*", "resnetv2_50*", "vgg16*", "--against", "timm", *SHARED)),
    ("training", 0.12, (*BENCH, "resnet50*", "--train", "--against", "timm", "--against", "fused", *SHARED)),
    ("compiled", 0.16, (*BENCH, "resnet50_cbam", "--compile", "--against", "timm", "--against", "fused", *SHARED)),
    ("blocks", 0.10, (*BENCH, "blocks", *SHARED)),
)  # fmt: skip


def command(name: str, words: tuple[str, ...], out: Path, device: str, *, smoke: bool) -> list[str]:
    """What is run for a part."""
    if name == "tests":
        few = ("-k", "ties", "-o", "xfail_strict=true") if smoke else ()
        return [*words, *few, f"--junitxml={out / 'tests.xml'}"]
    line = [*words, "--device", device, "--json", str(out / f"{name}.json")]
    if not smoke:
        return [*line, "--batch", "256"]
    small = {"tails": ("se", "--img-size", "48"), "blocks": ("se", "--img-size", "48")}
    if name in small:
        line[5:5] = small[name]  # behind the suite's name
    else:
        line = [word for word in line if "*" not in word and not word.startswith("resnet50")]
        line[4:4] = ["resnet18_se"]
    return [*line, "--batch", "2", "--repeats", "2", "--warmup", "1", "--budget", "1"]


def stop(process: subprocess.Popen[bytes]) -> None:
    """As by Ctrl-C, upon which pytest writes its report; then all at once, its workers too."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> int:
    """Run the parts one after the other; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    parser.add_argument("--part", action="append", choices=[name for name, _, _ in PARTS], help="only this one")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, to see that everything runs")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if not asked.part or part[0] in asked.part]
    end = time.monotonic() + 60 * asked.minutes
    shares = sum(share for _, share, _ in chosen)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    summary = {}
    for name, share, words in chosen:
        line = command(name, words, asked.out.resolve(), asked.device, smoke=asked.smoke)
        seconds = (end - time.monotonic()) * share / shares  # what one part leaves, the others get
        shares -= share
        start = time.monotonic()
        with (asked.out / f"{name}.log").open("w") as log:
            process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
                                       start_new_session=True)  # fmt: skip
            try:
                code: int | None = process.wait(timeout=max(5.0, seconds))
            except subprocess.TimeoutExpired:
                stop(process)
                code = None
            except BaseException:  # Ctrl-C reaches this process alone
                stop(process)
                raise
        ended = "out of time" if code is None else "done" if code == 0 else f"failed with code {code}"
        summary[name] = {"ended": ended, "seconds": round(time.monotonic() - start, 1), "command": " ".join(line)}
        (asked.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(f"{name}: {ended}, {summary[name]['seconds']} s", flush=True)
    return int(any(row["ended"].startswith("failed") for row in summary.values()))


if __name__ == "__main__":
    raise SystemExit(main())
