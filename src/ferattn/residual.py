"""Residual blocks whose last lines run as one operation: batch norm -> attention -> + shortcut -> activation.

A block keeps its attributes, its keys and its class's name for ``isinstance``; only its ``forward`` changes, and only
behind the last convolution. Wherever one of the modules there does more than its formula, because it carries a hook,
a foreign norm, an active drop path, the block runs module by module as timm wrote it; :func:`explain` says which way
a block goes and why.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.layers import DropPath
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnetv2 import PreActBasic, PreActBottleneck
from torch import Tensor, nn

from ferattn.attention import CBAM, ECA, SE, ChannelGate, SpatialGate
from ferattn.attention.excitation import has_hooks
from ferattn.errors import InvalidOption
from ferattn.kernels import Act, CBAMGate, ECAGate, Gate, Norm, SEGate, fused_tail
from ferattn.tail_graphs import TailGraphs

__all__ = ["compile_tails", "explain", "fuse_tails", "gate_of", "kind_of_block"]

_FUSED = ("auto", True, False)
_INSIDE = (SE, ECA, CBAM, ChannelGate, SpatialGate, nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm2d)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fuse_tails(model: nn.Module, fused: bool | str = "auto") -> int:
    """Let the residual blocks of a model that end in an attention block compute their tails as one operation.

    In place; call it after :func:`ferattn.attach`. No key of the state dict changes, and it can be taken back.

    Args:
        model: A ResNet or ResNetV2 with attention at the placement ``"residual"`` or ``"residual-last"``.
        fused: True wherever possible; False nowhere: timm's own blocks again; ``"auto"`` where it was measured to
            make whole models faster: under ``torch.compile``.

    Returns:
        How many blocks have such a tail.

    Raises:
        InvalidOption: If ``fused`` is none of the three, or True for a model without such a block.

    >>> import timm
    >>> from ferattn import SE, attach
    >>> model = timm.create_model("resnet18")
    >>> fuse_tails(model)
    0
    >>> _ = attach(model, SE)
    >>> fuse_tails(model)
    8
    """
    if not (isinstance(fused, bool) or fused == "auto"):
        raise InvalidOption(f"fused must be 'auto', True or False; got {fused!r}.")
    count = 0
    block: Any
    for block in model.modules():
        plain = next((kind.plain for kind in _KINDS if type(block) in (kind, kind.plain)), None)
        if plain is None or _attention(block) is None:
            continue
        count += 1
        if fused is False:
            block.__class__ = plain
            block.__dict__.pop("fused", None)
        else:
            block.__class__ = next(kind for kind in _KINDS if kind.plain is plain)
            block.fused = fused
        block.__dict__.pop("graphs", None)
    if fused is True and not count:
        raise InvalidOption(
            "fused=True needs residual blocks that end in SE, ECA or CBAM, as the placement 'residual' of a ResNet "
            f"or ResNetV2 makes them; {type(model).__name__} has none."
        )
    return count


def compile_tails(model: nn.Module) -> int:
    """Let :func:`fuse_tails` fuse the tails of a model, and ``torch.compile`` compile them and nothing else.

    For those who cannot compile the whole model: in place, nothing to wrap, no key of the state dict changes, and
    the rest of the model may do what no compiler takes. Each size of map, and each of train and eval mode, is
    compiled once, when it first comes; a second batch size compiles graphs for all batch sizes. Copies of the model
    share them. A compiled tail has no second derivative.
    :func:`fuse_tails` takes it back.

    Args:
        model: A ResNet or ResNetV2 with attention at the placement ``"residual"`` or ``"residual-last"``.

    Returns:
        How many blocks have such a tail.

    Raises:
        InvalidOption: If the model has no such block.

    >>> from ferattn import create_model
    >>> model = create_model("resnet18_se")
    >>> compile_tails(model), explain(model)["layer1.0"]
    (8, 'compiled')
    """
    count = fuse_tails(model, True)
    graphs = TailGraphs()
    for block in model.modules():
        if isinstance(block, _Tail):
            block.graphs = graphs
    return count


def explain(model: nn.Module) -> dict[str, str]:
    """How each residual block of a model, or a block alone, would compute its tail now, and why.

    That is, in eager PyTorch: train or eval mode matters, and what is attached to the modules.

    Returns:
        For each residual block's path, ``"fused"``, ``"compiled"`` or ``"module by module: <reason>"``.

    >>> from ferattn import create_model
    >>> explain(create_model("resnet18_se", fused=False))["layer1.0"]
    'module by module: fused=False'
    """
    found = {}
    for path, block in model.named_modules():
        if isinstance(block, tuple(kind.plain for kind in _KINDS)):
            reason = _refusal(block) if isinstance(block, _Tail) else "fused=False"
            if _attention(block) is None:
                reason = "no attention before the addition"
            elif isinstance(block, _Tail) and reason is None:
                reason = _not_worth_it(block)
            way = "fused" if getattr(block, "graphs", None) is None else "compiled"
            found[path] = way if reason is None else f"module by module: {reason}"
    return found


def kind_of_block(module: nn.Module) -> type[nn.Module]:
    """The class in timm of a residual block, fused or not; any other module's own class."""
    return _PLAIN.get(type(module), type(module))


class _Tail(nn.Module):
    """The end of a residual block; mixed into timm's classes."""

    fused: bool | str
    graphs: TailGraphs | None = None
    tail_names: ClassVar[tuple[str | None, str | None]]
    # timm's attributes
    conv1: Any
    conv2: Any
    conv3: Any
    bn1: Any
    bn2: Any
    norm1: Any
    norm2: Any
    norm3: Any
    act1: Any
    act2: Any
    aa: Any
    drop_block: Any
    drop_path: Any
    downsample: Any
    se: Any

    def finish(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """From the last convolution's output to the block's."""
        if _refusal(self) is None and _fits(self, x, shortcut) and _not_worth_it(self) is None:
            norm, act = (None if name is None else getattr(self, name) for name in self.tail_names)
            run = fused_tail if self.graphs is None or torch.compiler.is_compiling() else self.graphs
            return run(x, shortcut, gate_of(_attention(self)), _norm(norm), _act(act) or Act())
        return self.by_module(x, shortcut)

    def by_module(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The same, as timm wrote it."""
        raise NotImplementedError


class _PostActTail(_Tail):
    """ResNet: norm, attention, drop path, addition, activation."""

    def by_module(self, x: Tensor, shortcut: Tensor) -> Tensor:
        norm, act = self.tail_names
        x = getattr(self, str(norm))(x)
        if self.se is not None:
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        x += shortcut
        return getattr(self, str(act))(x)  # type: ignore[no-any-return]


class _PreActTail(_Tail):
    """ResNetV2: attention, drop path, addition."""

    tail_names = (None, None)

    def by_module(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return self.drop_path(x) + shortcut  # type: ignore[no-any-return]


class _FusedBasic(_PostActTail, BasicBlock):  # type: ignore[misc]
    plain = BasicBlock
    tail_names = ("bn2", "act2")

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        return self.finish(self.conv2(x), shortcut)


class _FusedBottleneck(_PostActTail, Bottleneck):  # type: ignore[misc]
    plain = Bottleneck
    tail_names = ("bn3", "act3")

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))
        return self.finish(self.conv3(x), shortcut)


class _FusedPreActBasic(_PreActTail, PreActBasic):  # type: ignore[misc]
    plain = PreActBasic

    def forward(self, x: Tensor) -> Tensor:
        before = self.norm1(x)
        shortcut = x if self.downsample is None else self.downsample(before)
        x = self.conv1(before)
        return self.finish(self.conv2(self.norm2(x)), shortcut)


class _FusedPreActBottleneck(_PreActTail, PreActBottleneck):  # type: ignore[misc]
    plain = PreActBottleneck

    def forward(self, x: Tensor) -> Tensor:
        before = self.norm1(x)
        shortcut = x if self.downsample is None else self.downsample(before)
        x = self.conv1(before)
        x = self.conv2(self.norm2(x))
        return self.finish(self.conv3(self.norm3(x)), shortcut)


_KINDS: tuple[Any, ...] = (_FusedBasic, _FusedBottleneck, _FusedPreActBasic, _FusedPreActBottleneck)
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {kind: kind.plain for kind in _KINDS}


def _attention(block: Any) -> Any:
    """The attention block right before the addition, None where there is none of ours."""
    found = block.se if hasattr(block, "se") else getattr(block.drop_path, "attention", None)
    return found if type(found) in (SE, ECA, CBAM) else None


def _weight(attention: Any) -> Tensor:
    """A weight of the attention; the copies of a model on several GPUs hold theirs as mere attributes."""
    if type(attention) is ECA:
        return attention.conv.weight
    return (attention.channel if type(attention) is CBAM else attention).layers[0]


def _refusal(block: Any) -> str | None:
    """Why the modules of this tail are more than their formulas; None if they are not."""
    attention = _attention(block)
    if attention is None:
        return "no attention before the addition"
    norm, act = (None if name is None else getattr(block, name) for name in block.tail_names)
    if norm is not None and not isinstance(norm, nn.Identity):  # where a folded norm was
        if type(norm) is not nn.BatchNorm2d:
            return f"the norm is a {type(norm).__name__}"
        if norm.momentum is None:
            return "the norm keeps a cumulative average"
    if act is not None and _act(act) is None:
        return f"the activation is a {type(act).__name__}{'' if type(act) is not nn.ELU else ' with alpha <= 0'}"
    paths = [] if block.drop_path is None else list(block.drop_path.modules())
    inside = list(attention.modules())
    for module in paths:
        if type(module) is DropPath:
            if module.training and module.drop_prob > 0:
                return "the drop path is active"
        elif module not in inside and not isinstance(module, nn.Sequential | nn.Identity):
            return f"the drop path is a {type(module).__name__}"
    for module in inside:
        if type(module) not in _INSIDE:
            return f"the attention holds a {type(module).__name__}"
    if type(attention) is CBAM and attention.spatial.norm is not None and _batch_statistics(attention.spatial.norm):
        return "the spatial gate's norm uses batch statistics"
    for module in (norm, act, *paths, *inside):
        if module is not None and has_hooks(module):
            return f"a hook on a {type(module).__name__}"
    return None


def _fits(block: Any, x: Any, shortcut: Any) -> bool:
    """Whether this input is one for the fused tail."""
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return False
    elif (
        type(x) is not Tensor
        or type(shortcut) not in (Tensor, nn.Parameter)
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    ):
        return False
    weight = _weight(_attention(block))
    return (
        x.dtype in _DTYPES
        and x.dtype == shortcut.dtype
        and x.shape == shortcut.shape
        and x.device.type in ("cpu", "cuda")
        and (weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type))
    )


def _not_worth_it(block: Any) -> str | None:
    """Why ``fused="auto"`` leaves this tail alone; None if it does not. The figures are in benchmarks/tails.md."""
    if block.fused is True or torch.compiler.is_compiling():
        return None
    return "eager, where whole models were measured to be no faster fused; torch.compile fuses it"


def _batch_statistics(norm: Any) -> bool:
    return bool(norm.training or norm.running_mean is None)


def _norm(norm: Any) -> Norm | None:
    """A module's batch norm for one call; counts the batch as the module would."""
    if norm is None or isinstance(norm, nn.Identity):
        return None
    track = norm.training and norm.track_running_stats
    if track and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    used = track or not norm.training
    mean, var = (norm.running_mean, norm.running_var) if used else (None, None)
    return Norm(norm.weight, norm.bias, mean, var, _batch_statistics(norm), norm.momentum, norm.eps)


def _act(act: Any) -> Act | None:
    """An activation module as the tail takes it; None if it does not."""
    if act is None or type(act) is nn.Identity:
        return Act()
    if type(act) is nn.ELU:
        return Act("elu", float(act.alpha)) if act.alpha > 0 else None
    names = {nn.ReLU: "relu", nn.SELU: "selu", nn.SiLU: "silu"}
    return Act(names[type(act)]) if type(act) in names else None


def gate_of(attention: Any) -> Gate:
    """An attention block's weights as the tail takes them."""
    if type(attention) is SE:
        return SEGate(*attention.layers)
    if type(attention) is ECA:
        return ECAGate(attention.conv.weight, attention.conv.bias, attention.channels, attention.circular)
    conv, norm = attention.spatial.conv, attention.spatial.norm
    weight, bias = conv.weight, conv.bias
    if norm is not None:  # with running statistics it is part of the convolution
        scale = (norm.running_var + norm.eps).rsqrt()
        shift = -norm.running_mean if bias is None else bias - norm.running_mean
        scale = scale if norm.weight is None else scale * norm.weight
        weight, bias = weight * scale[:, None, None, None], shift * scale
        bias = bias if norm.bias is None else bias + norm.bias
    w1, b1, w2, b2 = attention.channel.layers
    return CBAMGate(w1, b1, w2, b2, weight, bias, attention.refined)
