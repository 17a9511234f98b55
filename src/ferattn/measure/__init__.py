"""What a network costs: ``count`` for parameters, FLOPs and bytes, ``time`` for latency and memory.

This wing knows nothing about ferattn's own models: it takes any ``torch.nn.Module``.
"""

from ferattn.measure.counts import Count, ModuleCount, PartCount, count
from ferattn.measure.timing import (
    Candidate,
    Comparison,
    Ratio,
    Timing,
    copy_bandwidth,
    resolve_device,
    time,
    time_together,
)

__all__ = [
    "Candidate",
    "Comparison",
    "Count",
    "ModuleCount",
    "PartCount",
    "Ratio",
    "Timing",
    "copy_bandwidth",
    "count",
    "resolve_device",
    "time",
    "time_together",
]
