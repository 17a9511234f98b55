"""How long the tail of a residual block takes: batch norm -> attention -> + shortcut -> activation.

Variants, interleaved in one process so that a busy machine slows all of them alike: the plain tail without attention,
timm's attention, ours module by module and ours fused, each eager and compiled. The shapes are those of ResNet-50's
four stages. Printed are medians in milliseconds and, pair by pair, each variant's speed over timm eager.

    python benchmarks/tails.py --attention se eca cbam --image 48 224 --batch 16 --threads 1 --out tails.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import EcaModule, SEModule
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from ferattn.attention import CBAM, ECA, SE
from ferattn.kernels import Act, CBAMGate, ECAGate, Norm, SEGate, fused_tail

OURS = {"se": SE, "eca": ECA, "cbam": CBAM}
TIMMS = {
    "se": partial(SEModule, rd_ratio=1 / 16),
    "eca": EcaModule,
    "cbam": partial(CbamModule, rd_ratio=1 / 16),
}
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}
STAGES = ((256, 4), (512, 8), (1024, 16), (2048, 32))  # channels, and how often smaller than the picture


class Modules(nn.Module):
    """A tail as timm writes it."""

    def __init__(self, channels: int, attention: nn.Module | None) -> None:
        super().__init__()
        self.bn, self.attention, self.act = nn.BatchNorm2d(channels), attention, nn.ReLU(inplace=True)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """From the convolution's output to the block's."""
        x = self.bn(x)
        if self.attention is not None:
            x = self.attention(x)
        x += shortcut
        return self.act(x)


class Fused(Modules):
    """The same modules, computed by ``fused_tail``."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """From the convolution's output to the block's."""
        bn, block = self.bn, self.attention
        norm = Norm(bn.weight, bn.bias, bn.running_mean, bn.running_var, self.training, bn.momentum or 0.1, bn.eps)
        if isinstance(block, SE):
            gate: Any = SEGate(*block.layers)
        elif isinstance(block, ECA):
            gate = ECAGate(block.conv.weight, block.conv.bias, block.channels, block.circular)
        else:
            conv = block.spatial.conv
            gate = CBAMGate(*block.channel.layers, conv.weight, conv.bias, block.refined)
        return fused_tail(x, shortcut, gate, norm, Act("relu"))


def variants(attention: str, channels: int, *, compiled: bool) -> dict[str, nn.Module]:
    """The tails to compare, by name."""
    eager = {
        "plain eager": Modules(channels, None),
        "timm eager": Modules(channels, TIMMS[attention](channels)),
        "ours eager": Modules(channels, OURS[attention](channels)),
        "fused eager": Fused(channels, OURS[attention](channels)),
    }
    if not compiled:
        return eager
    torch._dynamo.reset()  # eight recompilations of one function, and it silently stays eager
    again = {name.replace("eager", "compiled"): torch.compile(tail, fullgraph=True) for name, tail in eager.items()}
    return {**eager, **again}


def step(tail: nn.Module, x: Tensor, shortcut: Tensor, dout: Tensor, *, training: bool) -> Callable[[], None]:
    """One run: forward alone, or forward and backward."""
    if not training:

        def infer() -> None:
            with torch.no_grad():
                tail(x, shortcut)

        return infer
    x, shortcut = x.detach().requires_grad_(), shortcut.detach().requires_grad_()

    def train() -> None:
        tail.zero_grad()
        torch.autograd.grad(tail(x, shortcut), [x, shortcut, *tail.parameters()], dout)

    return train


def measure(cases: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every run of every case, the cases taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        run()
        run()
    for _ in range(repeats):
        for name, run in cases.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", nargs="+", choices=sorted(OURS), default=sorted(OURS))
    parser.add_argument("--image", nargs="+", type=int, default=[48], help="sides of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--layout", nargs="+", choices=["channels_last", "contiguous"], default=["channels_last"])
    parser.add_argument("--stages", nargs="+", type=int, choices=[1, 2, 3, 4], default=[1, 2, 3, 4])
    parser.add_argument("--eager", action="store_true", help="leave the compiled variants out")
    parser.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default="processor",
        help="processor time leaves out what other programs took",
    )
    parser.add_argument("--out", type=Path, help="write all figures there, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for attention in options.attention:
        for image in options.image:
            for stage in options.stages:
                channels, reduction = STAGES[stage - 1]
                for layout in options.layout:
                    rows += measure_shape(attention, channels, -(-image // reduction), layout, options)
    if options.out:
        about = {
            "torch": torch.__version__,
            "timm": timm.__version__,
            "processor": platform.processor() or platform.machine(),
            "threads": options.threads,
            "clock": options.clock,
            "dtype": "float32",
            "repeats": options.repeats,
        }
        options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


def measure_shape(attention: str, channels: int, side: int, layout: str, options: Any) -> list[dict[str, Any]]:
    """All variants on one shape."""
    torch.manual_seed(0)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    shape = (options.batch, channels, side, side)
    x, shortcut, dout = (torch.randn(shape).contiguous(memory_format=memory_format) for _ in range(3))
    tails = variants(attention, channels, compiled=not options.eager)
    rows = []
    for training in (False, True):
        cases = {}
        for name, tail in tails.items():
            tail.train(training)
            cases[name] = step(tail, x, shortcut, dout, training=training)
        seconds = measure(cases, options.repeats, CLOCKS[options.clock])
        mode = "train" if training else "infer"
        print(f"{attention} {mode} {'x'.join(map(str, shape))} {layout}")
        for name, runs in seconds.items():
            ratios = [timm_s / s for timm_s, s in zip(seconds["timm eager"], runs, strict=True)]
            row = {
                "attention": attention,
                "mode": mode,
                "shape": shape,
                "layout": layout,
                "variant": name,
                "median_ms": statistics.median(runs) * 1e3,
                "over_timm_eager": statistics.median(ratios),
            }
            rows.append(row)
            print(
                f"   {name:16s} {row['median_ms']:9.3f} ms   {row['over_timm_eager']:5.2f} x timm eager", flush=True
            )
    return rows


if __name__ == "__main__":
    main()
