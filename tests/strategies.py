"""Hypothesis strategies for feature maps and what the blocks take."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last)
AWKWARD_SIZES = (1, 2, 3, 7, 12, 13)


@st.composite
def feature_maps(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Maps (b, c, h, w) of awkward sizes, in both memory formats, with the odd huge or zero value."""
    b = draw(st.integers(1, 3))
    c = draw(st.sampled_from((1, 2, 5, 16, 33)))
    h, w = draw(st.sampled_from(AWKWARD_SIZES)), draw(st.sampled_from(AWKWARD_SIZES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from((0.0, 1e-3, 1.0, 1e3)))
    x = torch.randn(b, c, h, w, generator=generator, dtype=dtype) * scale
    return x.contiguous(memory_format=draw(st.sampled_from(MEMORY_FORMATS)))
