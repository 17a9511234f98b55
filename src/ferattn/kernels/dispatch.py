"""Which way a tail is computed, and why: one function decides, :func:`explain` asks it.

``"plain"`` is :mod:`ferattn.kernels.passes`, on every device and in every dtype; ``"triton"`` are the kernels of
:mod:`ferattn.kernels.triton`, for CUDA. The kernels agree with the passes in Triton's interpreter and compile for
sm_90, but no GPU has timed them: until one has, ``"auto"`` stays with the passes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ferattn.errors import InvalidOption, choose
from ferattn.kernels.parts import Act, CBAMGate, ECAGate, Gate, Norm, require
from ferattn.pools import transformed

__all__ = ["PATHS", "Decision", "decide", "explain", "obstacle", "use"]

PATHS = ("auto", "plain", "triton")
"""What a caller can ask for."""

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_LARGEST_FILTER = 31
_MOST_PLACES = 65535 * 256
"""CUDA's limit to a grid's second axis, where the spatial filter's gradient takes 256 places at a time."""


class Decision(NamedTuple):
    """A path, ``"plain"`` or ``"triton"``, and the reason for it."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _Forced:
    """What :func:`use` asks for. Dynamo guards a plain attribute, but no context variable and no thread's own."""

    path = "auto"


@contextmanager
def use(path: str) -> Iterator[None]:
    """Let all tails inside take a path, in every thread; an argument ``path`` of a call goes before it.

    Args:
        path: ``"plain"``, ``"triton"``, or ``"auto"`` to lift what stands around it.

    Raises:
        UnknownChoice: If there is no such path.

    >>> with use("plain"):
    ...     print(_Forced.path)
    plain
    """
    choose(dict.fromkeys(PATHS), path, "path")
    before, _Forced.path = _Forced.path, path
    try:
        yield
    finally:
        _Forced.path = before


def explain(
    x: Tensor, shortcut: Tensor | None, gate: Gate, norm: Norm | None = None, act: Act | None = None
) -> Decision:
    """The path that :func:`ferattn.kernels.fused_tail` takes with these arguments here and now, and why.

    Raises:
        FerattnError: As ``fused_tail`` does.

    >>> from ferattn.kernels import ECAGate
    >>> str(explain(torch.randn(2, 8, 6, 6), None, ECAGate(torch.ones(1, 1, 3), None, 8)))
    'plain: the map is on the cpu'
    """
    require(x, shortcut, gate, norm, Act() if act is None else act)
    return decide(x, shortcut, gate, norm, "auto")


def obstacle(device: str | torch.device) -> str | None:
    """Why a device cannot run the kernels, whatever the arguments; None if it can.

    >>> obstacle("meta")
    'the map is on the meta'
    """
    where = torch.device(device)
    return _machine(where.type, where.index, True)  # type: ignore[no-any-return]


def decide(x: Tensor, shortcut: Tensor | None, gate: Gate, norm: Norm | None, path: str) -> Decision:
    """The path of one call.

    Raises:
        UnknownChoice: If there is no such path.
        InvalidOption: If the kernels were asked for and cannot run.
    """
    if path not in PATHS:
        choose(dict.fromkeys(PATHS), path, "path")
    asked = _Forced.path if path == "auto" else path
    if asked == "plain":
        return Decision("plain", "asked for")
    hindrance = _machine(x.device.type, x.device.index, asked == "triton") or _hindrance(x, shortcut, gate, norm)
    if hindrance is None:
        last = x.is_contiguous(memory_format=torch.channels_last)
        layout = "channels_last" if last else "contiguous" if x.is_contiguous() else "strided (copied)"
        dtype = str(x.dtype).removeprefix("torch.")
        return Decision("triton", f"{layout} {dtype} on {x.device.type}{'' if x.is_cuda else ', interpreted'}")
    if asked == "triton":
        raise InvalidOption(f"path 'triton' cannot run here: {hindrance}. Options: {', '.join(PATHS)}.")
    return Decision("plain", hindrance)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _machine(device: str, index: int | None, forced: bool) -> str | None:
    """Why this device does not run the kernels; None if it does, as a CPU that is to interpret them."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cpu" and forced:
        from ferattn.kernels.triton.launch import interpreted

        if interpreted():
            return None
    if device != "cuda":
        return f"the map is on the {device}"
    if not forced:  # a kernel earns its place by a measurement
        return "the kernels were not timed on a GPU yet, so they run where they are asked for"
    if torch.version.hip is not None:
        return "the kernels were not tried on this maker's GPUs"
    if torch.cuda.get_device_capability(index) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def _hindrance(x: Tensor, shortcut: Tensor | None, gate: Gate, norm: Norm | None) -> str | None:
    """Why the kernels do not take these arguments; None if they do."""
    if x.dtype not in _DTYPES:
        return f"the map is {str(x.dtype).removeprefix('torch.')}"
    if torch.compiler.is_exporting():
        return "an exported program must not need ferattn"
    if not torch.compiler.is_compiling() and transformed():
        return "torch.func and forward-mode derivatives go through the plain passes"
    if x.is_cuda and not torch.compiler.is_compiling() and x.device.index != torch.cuda.current_device():
        return "the map is not on the current CUDA device"
    if x.numel() == 0:
        return "the map is empty"
    if x.shape[1] * x.shape[2] * x.shape[3] >= 2**31:
        return "a sample has 2**31 values or more"
    if 2 * x.shape[0] * x.shape[2] * x.shape[3] >= 2**31:  # CBAM counts its two spatial pools in 32 bits
        return "the maps have 2**30 places or more"
    if x.shape[2] * x.shape[3] > _MOST_PLACES:
        return f"a map has more than {_MOST_PLACES} places"
    if norm is not None and any(t is not None and not t.is_contiguous() for t in norm[2:4]):
        return "the running statistics are strided"
    tensors = (*(() if norm is None else norm), *gate, shortcut)
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.device != x.device:
            return f"a tensor is on {tensor.device}, the map on {x.device}"
        if isinstance(tensor, Tensor) and tensor.dtype not in _DTYPES:
            return f"a weight is {str(tensor.dtype).removeprefix('torch.')}"
    if isinstance(gate, ECAGate | CBAMGate):
        k = gate.weight.shape[-1]
        if k > _LARGEST_FILTER or k % 2 == 0 or (isinstance(gate, CBAMGate) and gate.weight.shape[-2] != k):
            return f"a filter of {'x'.join(str(n) for n in gate.weight.shape[2:])}"
    return None
