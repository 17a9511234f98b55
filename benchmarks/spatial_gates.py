"""CBAM's spatial convolution on small maps, as PyTorch computes it and as a dense product with a Toeplitz matrix.

Eager, float32, one thread, microseconds of processor time: why the fused tail keeps the convolution.

    python benchmarks/spatial_gates.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL = 7


def places(side: int) -> Tensor:
    """For each input and output cell the filter's entry between them; one behind the last where there is none."""
    at = torch.arange(side)
    step = at[:, None] - at + KERNEL // 2
    inside = (step >= 0) & (step < KERNEL)
    step = step.clamp(0, KERNEL - 1)
    entry = step[:, None, :, None] * KERNEL + step[None, :, None, :]
    return torch.where(inside[:, None, :, None] & inside[None, :, None, :], entry, KERNEL**2).reshape(
        side**2, side**2
    )


def microseconds(run: Callable[[], Any]) -> float:
    """Median over thirty samples of ten calls."""
    run()
    samples = []
    for _ in range(30):
        start = time.process_time()
        for _ in range(10):
            run()
        samples.append((time.process_time() - start) * 1e5)
    return statistics.median(samples)


@torch.no_grad()
def measure(batch: int, side: int) -> str:
    """One line of the table."""
    cells = side**2
    x, dout, weight = torch.randn(batch, 2, side, side), torch.randn(batch, 1, side, side), torch.randn(1, 2, 7, 7)
    place = places(side)

    def matrix() -> Tensor:
        return F.pad(weight.flatten(2)[0], (0, 1))[:, place].reshape(2 * cells, cells)

    def dense() -> Tensor:
        return (x.flatten(1) @ matrix()).view(batch, 1, side, side)

    def dense_backward() -> tuple[Tensor, Tensor]:
        flat = dout.flatten(1)
        dmatrix = (x.flatten(1).t() @ flat).view(2, -1)
        dweight = torch.zeros(2, KERNEL**2 + 1).index_add_(1, place.flatten(), dmatrix)
        return (flat @ matrix().t()).view_as(x), dweight[:, :-1].reshape(1, 2, KERNEL, KERNEL)

    def convolution() -> Tensor:
        return F.conv2d(x, weight, padding=KERNEL // 2)

    def convolution_backward() -> tuple[Tensor, ...]:
        p = KERNEL // 2
        return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
            dout, x, weight, [1], [1, 1], [p, p], [1, 1], False, [0, 0], 1, [True, True, True]
        )

    torch.testing.assert_close(dense(), convolution(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dense_backward(), convolution_backward()[:2], rtol=1e-3, atol=1e-3)
    times = [microseconds(run) for run in (convolution, dense, convolution_backward, dense_backward)]
    index = microseconds(lambda: places(side))
    return f"| {batch}x2x{side}x{side} | " + " | ".join(f"{t:.0f}" for t in (*times, index)) + " |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| map | convolution | dense | convolution, backward | dense, backward | making the index |")
    print("|---|--:|--:|--:|--:|--:|")
    for batch in (8, 32):
        for side in (12, 6, 3, 2):
            print(measure(batch, side), flush=True)
