"""What a network looks at: the gates of its attention blocks, and class activation maps.

>>> from ferattn import create_model
>>> model, images = create_model("resnet18_cbam", stem="small"), torch.randn(2, 1, 48, 48)
>>> gates = attention_gates(model, images)
>>> gates["layer1.0.se"].channel.shape, gates["layer1.0.se"].spatial.shape
(torch.Size([2, 64]), torch.Size([2, 48, 48]))
>>> class_activation_maps(model, images).shape
torch.Size([2, 48, 48])
>>> both = explanation(model, images)  # the same and the logits, the model having run once
>>> both.logits.shape, both.maps.shape, len(both.gates)
(torch.Size([2, 7]), torch.Size([2, 48, 48]), 8)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferattn.attention import CBAM, ECA, SE, ChannelGate, SpatialGate
from ferattn.errors import InvalidInput, InvalidOption, NoSite, UnknownChoice, choose, closest
from ferattn.wrappers import unwrap

__all__ = ["METHODS", "Explanation", "Gates", "attention_gates", "class_activation_maps", "explanation"]


@dataclass(frozen=True, eq=False)
class Gates:
    """By what an attention block multiplied its map, numbers from 0 to 1.

    Attributes:
        channel: One for each channel, (b, c); None for a block that has no channel gate.
        spatial: One for each place, (b, h, w); None for a block that has no spatial gate.
    """

    channel: Tensor | None
    spatial: Tensor | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a network answers, and where it looks.

    Attributes:
        logits: (b, k).
        classes: For which output the places of each image speak, (b,).
        maps: How much each place does, (b, h, w) of the images; 0 and more, in units of the logit.
        gates: By the path of each attention block, in the order in which they are reached; empty without any.
    """

    logits: Tensor
    classes: Tensor
    maps: Tensor
    gates: dict[str, Gates]


def attention_gates(model: nn.Module, images: Tensor) -> dict[str, Gates]:
    """The gates of every attention block of ours, as the model computes them for these images.

    The model runs in evaluation mode, uncompiled, and is left as it was.

    Args:
        model: Any network with SE, ECA, CBAM, ChannelGate or SpatialGate in it; not of subclasses, whose formulas may
            be others.
        images: What it takes, (b, c, h, w).

    Returns:
        By the block's path in the model, in the order in which the blocks are reached; of a block that runs more than
        once, the last time.

    Raises:
        NoSite: If no such block runs.

    Source: Hu et al. 2018, arXiv 1709.01507, eq. 3; Wang et al. 2020, arXiv 1910.03151, eq. 5; Woo et al. 2018,
    arXiv 1807.06521, eq. 2-3.
    """
    model = unwrap(model)
    with _evaluating(model), torch.no_grad(), _recording(model) as found:
        model(images)
    if not found:
        raise NoSite(f"{type(model).__name__} has no SE, ECA or CBAM block whose gates could be shown.")
    return found


def class_activation_maps(
    model: nn.Module,
    images: Tensor,
    classes: Sequence[int] | Tensor | None = None,
    *,
    method: str = "hires-cam",
    layer: str | None = None,
) -> Tensor:
    """Which places of an image speak for a class.

    With A the layer's map of c channels and g the gradient of the class's logit in it, ``"grad-cam"`` is
    relu(sum over c of (mean of g over h, w) * A), and ``"hires-cam"`` is relu(sum over c of g * A). Behind a global
    average pool the two are the same; behind a fully connected layer that sees each place by itself, as in ``cnn``
    and VGG, only the second takes the places apart. The model runs in evaluation mode, uncompiled, and is left as it
    was; no parameter gets a gradient.

    Args:
        model: A classifier, from (b, c, h, w) to (b, k).
        images: What it takes.
        classes: For which output the places of each image speak, (b,); the most probable one by default.
        method: An entry of ``METHODS``.
        layer: The path of the module whose output is looked at; by default the last feature map, which is 2x2 for a
            48-pixel face in a ResNet with timm's own stem: give an earlier one there, such as ``"layer2"``. Of a
            module that runs more than once, the last time.

    Returns:
        (b, h, w) with the images' h and w, enlarged bilinearly; 0 and more, in units of the logit.

    Raises:
        InvalidInput: If the model does not return logits, or the layer no map that they come from.
        InvalidOption: If ``classes`` are not one output for each image.
        UnknownChoice: If there is no such method or layer.

    Source: Selvaraju et al. 2017, arXiv 1610.02391, eq. 1-2; Draelos & Carin 2020, arXiv 2011.08891.
    """
    return _look(unwrap(model), images, classes, method, layer)[2]


def explanation(
    model: nn.Module,
    images: Tensor,
    classes: Sequence[int] | Tensor | None = None,
    *,
    method: str = "hires-cam",
    layer: str | None = None,
) -> Explanation:
    """The answers, the class activation maps and the gates, all of one run of the model.

    Args:
        model: A classifier, from (b, c, h, w) to (b, k).
        images: What it takes.
        classes: As for ``class_activation_maps``.
        method: Likewise.
        layer: Likewise.

    Raises:
        InvalidInput: As ``class_activation_maps`` does.
        InvalidOption: Likewise.
        UnknownChoice: Likewise.
    """
    model = unwrap(model)
    with _recording(model) as gates:
        logits, rows, maps = _look(model, images, classes, method, layer)
    return Explanation(logits, rows, maps, gates)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad-cam": lambda features, slopes: slopes.mean((2, 3), keepdim=True) * features,
    "hires-cam": lambda features, slopes: slopes * features,
}
"""From a map and the logit's gradient in it to what is summed over channels."""


def _of_channels(block: Any, x: Tensor) -> Gates:
    return Gates(block.gate(x), None)


def _of_spatial_gate(block: Any, x: Tensor) -> Gates:
    return Gates(None, block.gate(x)[:, 0])


def _of_cbam(block: Any, x: Tensor) -> Gates:
    channel = block.channel.gate(x)
    seen = x * channel.to(x.dtype)[:, :, None, None] if block.refined else x
    return Gates(channel, block.spatial.gate(seen)[:, 0])


_GATES: dict[type[nn.Module], Callable[[Any, Tensor], Gates]] = {
    SE: _of_channels,
    ECA: _of_channels,
    ChannelGate: _of_channels,
    SpatialGate: _of_spatial_gate,
    CBAM: _of_cbam,
}


@contextmanager
def _recording(model: nn.Module) -> Iterator[dict[str, Gates]]:
    """What the blocks' gates are, each time that the model runs uncompiled."""
    found: dict[str, Gates] = {}
    inside: set[nn.Module] = set()
    hooks = []

    def keep(path: str, block: nn.Module, inputs: tuple[Tensor]) -> None:
        with torch.no_grad():
            found[path] = _GATES[type(block)](block, inputs[0])

    for path, block in model.named_modules():
        if type(block) in _GATES and block not in inside:
            inside |= set(block.modules())
            hooks.append(block.register_forward_pre_hook(partial(keep, path)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and uncompiled, so that hooks run; then each module in the mode it was in."""
    learning = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module in learning:
            module.training = True


def _look(
    model: nn.Module, images: Tensor, classes: Sequence[int] | Tensor | None, method: str, layer: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits (b, k), the outputs asked about (b,), and the maps (b, h, w)."""
    weigh = choose(METHODS, method, "method")
    if getattr(model, "num_classes", None) == 0:
        raise InvalidInput(f"{type(model).__name__} has no classifier, hence no class that a place could speak for.")
    with _evaluating(model), torch.inference_mode(False), torch.enable_grad():
        images = images.clone() if images.is_inference() else images
        if layer is None:
            features, logits = _last_map(model, images)
        else:
            features, logits = _map_of(model, images, layer)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            raise InvalidInput(f"a classifier's logits (b, k) are needed; the model gives {_shape(logits)}.")
        rows = _rows(classes, logits)
        chosen = logits.gather(1, rows).sum()
        slopes = torch.autograd.grad(chosen, features, allow_unused=True)[0] if chosen.requires_grad else None
    if slopes is None:
        raise InvalidInput(f"the logits do not come from what {layer or 'the features'} gives: name another layer.")
    maps = F.relu(weigh(features.detach(), slopes).sum(1, keepdim=True))
    maps = F.interpolate(maps, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return logits.detach(), rows[:, 0], maps


def _last_map(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    if not hasattr(model, "forward_features"):
        raise InvalidInput(f"{type(model).__name__} has no forward_features: name the layer to look at.")
    with torch.no_grad():
        features = model.forward_features(images)
    _require_map(features, "forward_features")
    if features.shape[1] != getattr(model, "num_features", features.shape[1]):
        raise InvalidInput(f"forward_features gives {_shape(features)}: no (b, {model.num_features}, h, w).")
    features.requires_grad_()
    return features, model.forward_head(features)


def _map_of(model: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        match = closest(layer, modules)
        hint = f"; did you mean {match!r}?" if match else "."
        raise UnknownChoice(f"unknown layer {layer!r}{hint} model.named_modules() has them all.")
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        _require_map(output, layer)
        seen[:] = [output.detach().requires_grad_()]
        return seen[0].clone()  # what comes next may write into it

    hook = modules[layer].register_forward_hook(keep)
    try:
        logits = model(images)
    finally:
        hook.remove()
    if not seen:
        raise UnknownChoice(
            f"layer {layer!r} is not called when the model runs: its parent computes it, or gradient checkpointing "
            "goes past it. Name one inside or around it."
        )
    return seen[0], logits


def _require_map(output: Any, layer: str) -> None:
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise InvalidInput(f"{layer} gives no feature map (b, c, h, w) but {_shape(output)}.")


def _shape(output: Any) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _rows(classes: Sequence[int] | Tensor | None, logits: Tensor) -> Tensor:
    """Which output counts for each image, (b, 1)."""
    if classes is None:
        return logits.argmax(1, keepdim=True)
    try:
        rows = torch.as_tensor(classes, device=logits.device)
    except (TypeError, ValueError, RuntimeError):
        rows = torch.empty(0)
    whole = not (rows.is_floating_point() or rows.dtype == torch.bool)
    if rows.shape != logits.shape[:1] or not whole or not ((rows >= 0) & (rows < logits.shape[1])).all():
        raise InvalidOption(
            f"classes={classes!r}: one of the outputs 0 to {logits.shape[1] - 1} for each of {len(logits)} images."
        )
    return rows.long()[:, None]
