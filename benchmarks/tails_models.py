"""One training step of a whole model, its tails fused and not, eager or compiled; processor time on one thread.

python benchmarks/tails_models.py resnet18_cbam --image 48 --batch 16 --compile
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch

from ferattn import create_model
from ferattn.residual import fuse_tails


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a residual network with attention, such as resnet50_cbam")
    parser.add_argument("--image", type=int, default=48, help="side of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    modules = create_model(options.name, fused=False, img_size=options.image)
    fused = copy.deepcopy(modules)
    fuse_tails(fused, True)
    plain = create_model(options.name.split("_se")[0].split("_eca")[0].split("_cbam")[0], img_size=options.image)
    models = {"plain": plain, "modules": modules, "fused": fused}
    steps = {name: torch.compile(model) if options.compile else model for name, model in models.items()}
    pictures = torch.randn(options.batch, 1, options.image, options.image)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(options.repeats + 2):
        for name, step in steps.items():
            start = time.process_time()
            step(pictures).square().mean().backward()
            if repeat > 1:
                seconds[name].append(time.process_time() - start)
            models[name].zero_grad()
    for name, runs in seconds.items():
        ratio = statistics.median(m / s for m, s in zip(seconds["modules"], runs, strict=True))
        print(f"{name:8s} {statistics.median(runs) * 1e3:9.1f} ms {ratio:7.2f} x module by module", flush=True)


if __name__ == "__main__":
    main()
