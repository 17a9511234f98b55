"""Which operators do arithmetic, and how much: the bookkeeping behind ``count``.

Matrix products and convolutions are counted by torch's own formulas (``torch.utils.flop_counter``). All else
that computes is counted in *elements*: the output of a pointwise operator, the input of a reduction. What
only moves or creates data counts nothing. An operator in none of the three groups is an error, because a
silent zero would make an exotic layer look free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ferattn.errors import InvalidInput

__all__ = ["OperatorCounter"]

# fmt: off
# Reductions, pools and normalisations: work goes with the size of the input. Recent torch tags the plain
# reductions as such; the names keep older releases at the same count.
_BY_INPUT = frozenset(
    [
        "sum", "mean", "amax", "amin", "aminmax", "max", "min", "prod", "var", "var_mean", "std",
        "std_mean", "norm", "linalg_vector_norm", "logsumexp", "nansum", "argmax", "argmin", "any",
        "all", "count_nonzero", "median", "cumsum", "cumprod", "sort", "topk",
        "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d",
        "adaptive_max_pool2d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "mkldnn_max_pool2d",
        "mkldnn_adaptive_avg_pool2d", "native_batch_norm", "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional",
        "_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "miopen_batch_norm",
        "native_layer_norm", "native_group_norm", "_fused_rms_norm", "_softmax",
        "_safe_softmax", "col2im", "_log_softmax",
    ]
)
# Computed per element of the output although torch does not tag them as pointwise.
_BY_OUTPUT = frozenset(
    [
        "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
        "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler_2d", "native_dropout",
        "_prelu_kernel", "hardswish", "hardsigmoid", "glu", "rrelu_with_noise", "erfinv", "scatter_add", "index_add",
    ]
)
_MOVES_DATA = frozenset(
    [
        "clone", "copy", "copy_", "_to_copy", "contiguous", "cat", "stack", "constant_pad_nd",
        "reflection_pad2d", "replication_pad2d", "index", "index_put", "index_put_", "index_select",
        "gather", "scatter", "embedding", "repeat", "roll", "flip", "tril", "triu", "empty",
        "empty_like", "empty_strided", "new_empty", "new_empty_strided", "zeros", "zeros_like",
        "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full", "fill",
        "fill_", "zero_", "scalar_tensor", "arange", "linspace", "eye", "lift_fresh",
        "lift_fresh_copy", "detach", "detach_", "resize_", "set_", "pixel_shuffle",
        "pixel_unshuffle", "channel_shuffle", "rand", "rand_like", "randn", "randn_like", "randint",
        "randperm", "bernoulli", "bernoulli_", "uniform_", "normal_", "uniform", "normal",
        "unfold_copy", "view_copy", "_reshape_copy", "_unsafe_view", "_reshape_alias", "im2col",
        "as_strided_copy",
        "as_strided_", "unsafe_split", "split_with_sizes_copy", "expand_copy", "permute_copy", "where",
        "masked_fill", "masked_fill_",
    ]
)
# fmt: on


class OperatorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts elements and bytes of every operator that runs inside it, by module, and refuses unknown ones.

    Args:
        flops: The FLOP counter that runs around this mode; it also tells which module is running.
        formulas: Further FLOP formulas, by operator packet.
    """

    def __init__(self, flops: FlopCounterMode, formulas: Mapping[Any, Callable[..., int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = flops
        self.formulas = formulas
        self.elements: dict[str, int] = defaultdict(int)
        self.allocated_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        known = packet in flop_registry or packet in self.formulas
        elements = None if known else _elements(func)
        if not known and elements is None and func is not torch.ops.prim.device.default:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
            raise InvalidInput(
                f"no FLOP formula for the operator {func}, so the model cannot be counted; "
                f"pass formulas={{torch.ops.{func.namespace}.{packet.__name__}: function_of_shapes}}, "
                "or register one with torch.utils.flop_counter.register_flop_formula"
            )
        out = func(*args, **kwargs)
        if elements is not None:
            amount = elements(tree_leaves((args, kwargs)), tree_leaves(out))
            for module in set(self.flops.mod_tracker.parents):
                self.elements[module] += amount
        result = out[0] if isinstance(out, (tuple, list)) and out else out
        returns = func._schema.returns
        if isinstance(result, torch.Tensor) and returns and returns[0].alias_info is None:
            self.allocated_bytes += result.numel() * result.element_size()
        return out


def _of_output(inputs: list[Any], outputs: list[Any]) -> int:
    return max((x.numel() for x in outputs if isinstance(x, torch.Tensor)), default=0)


def _of_input(inputs: list[Any], outputs: list[Any]) -> int:
    return max((x.numel() for x in inputs if isinstance(x, torch.Tensor)), default=0)


def _nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


def _elements(func: Any) -> Callable[[list[Any], list[Any]], int] | None:
    """How to count the elements ``func`` works on; None where it is in no group."""
    name = func.overloadpacket.__name__
    if func.namespace not in ("aten", "prims", "prim"):
        return None
    if func.is_view or name in _MOVES_DATA:
        return _nothing
    base = name.removesuffix("_")
    tags = set(func.tags)
    if base != name:  # torch tags relu_ as pointwise, but not mish_
        packet = getattr(torch.ops.aten, base, None)
        tags |= set(getattr(getattr(packet, func._overloadname, None), "tags", ()))
    if base in _BY_INPUT or getattr(torch.Tag, "reduction", None) in tags:
        return _of_input
    if base in _BY_OUTPUT or torch.Tag.pointwise in tags:
        return _of_output
    return None
