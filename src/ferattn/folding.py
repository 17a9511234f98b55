"""Batch norm folded into the convolution before it: the same network for inference, with fewer operations.

In evaluation mode a batch norm is y = a x + d with a = gamma / std and d = beta - a mean, and a convolution in front
of it takes both into its own weights: a W and a b + d. Left alone are norms that do not stand right behind a
convolution, as the first of a pre-activation block, and all that carries a hook or a parametrisation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from timm.layers import Conv2dSame, ConvNormAct, FrozenBatchNormAct2d
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNorm2d, SyncBatchNormAct
from timm.models import FeatureDictNet, ResNet
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnetv2 import Bottleneck as PostActBottleneck
from timm.models.resnetv2 import PreActBasic, PreActBottleneck
from torch import Tensor, nn

from ferattn.attention import SpatialGate
from ferattn.attention.excitation import has_hooks
from ferattn.errors import InvalidOption
from ferattn.heads import FittedHead
from ferattn.residual import kind_of_block

__all__ = ["fold_norms"]

_BEHIND: dict[Any, tuple[tuple[str, str], ...]] = {
    ResNet: (("conv1", "bn1"),),
    BasicBlock: (("conv1", "bn1"), ("conv2", "bn2")),
    Bottleneck: (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    PreActBasic: (("conv1", "norm2"),),
    PreActBottleneck: (("conv1", "norm2"), ("conv2", "norm3")),
    PostActBottleneck: (("conv1", "norm1"), ("conv2", "norm2"), ("conv3", "norm3")),
    ConvNormAct: (("conv", "bn"),),
    SpatialGate: (("conv", "norm"),),
    FittedHead: (("fc1", "norm1"),),
}
"""For each kind of module its convolutions and the norms that read what they put out, and nothing else does."""

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
_NORMS_WITH_ACTIVATION = (BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)


class _DropAct(nn.Module):
    """What is left of timm's norm with an activation, under the same names."""

    def __init__(self, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.drop = drop
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))  # type: ignore[no-any-return]


def fold_norms(model: nn.Module) -> int:
    """Fold every batch norm that stands right behind a convolution into it, for inference, in place.

    The outputs stay the same, to rounding. Convolutions get a bias where they had none. In a VGG and in ``cnn`` the
    norms leave ``features`` altogether, so that the state dict has the keys of the same network built without norms
    and its weights load there; elsewhere the norm's place stays, empty, and no other key changes. In a ResNetV2 the
    norms behind an addition are left: there is no convolution to take them.

    A folded model is built by no name: whoever wants to open it again by one (``timm.models.save_for_hf``) saves it
    before and folds what was opened.

    Args:
        model: Any model of :func:`ferattn.create_model` or timm's ResNets, VGGs and ResNetV2s, in eval mode.

    Returns:
        How many norms were folded; 0 where there is nothing left to fold.

    Raises:
        InvalidOption: If the model or one of those norms is in training mode.

    >>> from ferattn import create_model
    >>> model = create_model("cnn_se", norm_layer=nn.BatchNorm2d).eval()
    >>> fold_norms(model), fold_norms(model)
    (7, 0)
    >>> list(model.state_dict()) == list(create_model("cnn_se").state_dict())
    True
    """
    if not isinstance(model, nn.Module):
        raise InvalidOption(f"model must be a torch.nn.Module; got {model!r}.")
    pairs = [pair for pair in _pairs(model) if _foldable(pair[0], getattr(pair[1], pair[2]))]
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    pairs = [(conv, parent, name) for conv, parent, name in pairs if uses[conv] == uses[getattr(parent, name)] == 1]
    if model.training or any(getattr(parent, name).training for _, parent, name in pairs):
        raise InvalidOption(
            "fold_norms needs a model in eval mode, where norms use their running statistics: call model.eval() "
            "first. A folded model is for inference."
        )
    for conv, parent, name in pairs:
        norm = getattr(parent, name)
        _fold(conv, norm)
        setattr(parent, name, _what_stays(parent, norm))
    _renumber(model)
    return len(pairs)


def _pairs(model: nn.Module) -> Iterator[tuple[Any, Any, str]]:
    """Every convolution with something right behind it: that something's parent, and its name there."""
    for module in model.modules():
        if type(module) is nn.Sequential or isinstance(module, FeatureDictNet):
            taps = getattr(module, "return_layers", {})
            for (before, one), (name, _) in pairwise(module.named_children()):
                if before not in taps:
                    yield _last(one), module, name
        for before, name in _BEHIND.get(kind_of_block(module), ()):
            if isinstance(getattr(module, name, None), nn.Module):
                yield _last(getattr(module, before)), module, name


def _last(module: nn.Module) -> nn.Module:
    """The last layer of a stem of several."""
    return module[-1] if type(module) is nn.Sequential and len(module) and not has_hooks(module) else module


def _foldable(conv: Any, norm: Any) -> bool:
    return (
        type(conv) in _CONVOLUTIONS
        and type(norm) in (*_NORMS, *_NORMS_WITH_ACTIVATION)
        and norm.running_mean is not None
        and norm.running_var is not None
        and not has_hooks(conv)
        and not has_hooks(norm)
    )


@torch.no_grad()
def _fold(conv: Any, norm: Any) -> None:
    old, shift = conv.weight, -_exact(norm.running_mean)
    scale = (_exact(norm.running_var) + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * _exact(norm.weight)
    bias = (shift if conv.bias is None else shift + _exact(conv.bias)) * scale
    bias = bias if norm.bias is None else bias + _exact(norm.bias)
    # New parameters, so that a weight that another module or a copy shares stays as it is there.
    conv.weight = nn.Parameter(_like(old, _exact(old) * scale[:, None, None, None]), old.requires_grad)
    conv.bias = nn.Parameter(_like(old, bias), old.requires_grad)


def _exact(tensor: Tensor) -> Tensor:
    """In float64 on the CPU: Apple's GPUs have none."""
    return tensor.cpu().double()


def _like(old: Tensor, new: Tensor) -> Tensor:
    """In the dtype of a tensor first, then on its device: float64 cannot go there."""
    return new.to(old.dtype).to(old.device)


def _what_stays(parent: nn.Module, norm: Any) -> nn.Module | None:
    if isinstance(norm, _NORMS_WITH_ACTIVATION):
        return _DropAct(norm.drop, norm.act).eval()
    return None if isinstance(parent, SpatialGate) else _Folded().eval()


class _Folded(nn.Identity):
    """The place of a norm that was folded."""


def _renumber(model: Any) -> None:
    """Take the empty places out of ``features``, and let all that names its layers by number follow."""
    features = getattr(model, "features", None)
    if type(features) is not nn.Sequential or list(features._modules) != [str(i) for i in range(len(features))]:
        return
    empty = [number for number, module in enumerate(features) if type(module) is _Folded]
    if not empty:
        return

    def follow(path: str) -> str:
        room, *rest = path.split(".")
        return ".".join([room, str(moved(int(rest[0]))), *rest[1:]]) if room == "features" else path

    def moved(number: int) -> int:  # also of layers that were pruned, which feature_info still counts
        return number - sum(place <= number for place in empty)

    kept = [module for module in features if type(module) is not _Folded]
    model.features._modules = {str(number): module for number, module in enumerate(kept)}
    for info in getattr(model, "feature_info", ()):
        info["module"] = follow(info["module"])
    if hasattr(model, "feature_ends"):  # timm's VGG counts its taps once more
        model.feature_ends = [moved(end) for end in model.feature_ends]
    sites = getattr(model, "attention_sites", None)
    if sites is not None:
        model.attention_sites = tuple(replace(site, path=follow(site.path)) for site in sites)
