"""What a network holds and computes: parameters, FLOPs, elements, activation bytes, size on disk.

Everything is exact and the same on every machine. A model built on the ``meta`` device is counted without its
memory or its arithmetic:

>>> with torch.device("meta"):
...     model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 7))
>>> result = count(model, (3, 8, 8), classifier="2")
>>> result.parameters, result.by_part["classifier"].parameters, result.flops
(2247, 2023, 19584)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ferattn.errors import FerattnError, InvalidInput, choose
from ferattn.measure.operators import OperatorCounter

__all__ = ["Count", "ModuleCount", "PartCount", "count"]

DISK_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PartCount:
    """The share of one part of a network (backbone, attention or classifier).

    Attributes:
        parameters: Numbers in its parameters.
        trainable: Those of them that take a gradient.
        flops: As in :class:`Count`.
        elements: As in :class:`Count`.
    """

    parameters: int
    trainable: int
    flops: int
    elements: int


@dataclass(frozen=True)
class ModuleCount:
    """What one module holds, everything below it included.

    Attributes:
        kind: The name of its class.
        parameters: Numbers in its parameters.
        trainable: Those of them that take a gradient.
        buffers: Numbers in its buffers, such as running means.
        flops: As in :class:`Count`.
        elements: As in :class:`Count`.
    """

    kind: str
    parameters: int
    trainable: int
    buffers: int
    flops: int
    elements: int


@dataclass(frozen=True)
class Count:
    """What a network costs for one image.

    Attributes:
        input_size: The image, (c, h, w).
        parameters: All parameters; a shared one counts once.
        trainable: Those with ``requires_grad``.
        buffers: Elements of all buffers, such as the running statistics of a batch norm.
        flops: Floating-point operations of matrix products and convolutions in one forward pass, by torch's
            formulas (a multiply and an add are two).
        elements: Elements that all other arithmetic touches in one forward pass: one for each output of a
            pointwise operator and for each input of a reduction, pool or normalisation.
        activation_bytes: Bytes of all tensors that one forward pass writes anew, without the second results
            of operators (indices, saved statistics), which differ between devices.
        saved_bytes: Bytes that autograd keeps for the backward pass in training, besides parameters and
            buffers.
        disk_bytes: Bytes of the state dict by the dtype of its floating-point tensors, without a file header.
        by_part: Shares of "backbone", "attention" and "classifier"; they add up to the whole.
        by_module: Every module by its path ("" is the whole network). What a module computes with its children's
            weights, as attention blocks do, is counted at its own path and not at theirs.
    """

    input_size: tuple[int, int, int]
    parameters: int
    trainable: int
    buffers: int
    flops: int
    elements: int
    activation_bytes: int
    saved_bytes: int
    disk_bytes: Mapping[str, int]
    by_part: Mapping[str, PartCount]
    by_module: Mapping[str, ModuleCount]


def count(
    model: nn.Module,
    input_size: Sequence[int],
    *,
    attention: Iterable[str] | None = None,
    classifier: str | Iterable[str] | None = None,
    formulas: Mapping[Any, Callable[..., int]] | None = None,
) -> Count:
    """Count what ``model`` holds and what one image of ``input_size`` costs.

    The model runs three times on the device it lives on (a meta model does no arithmetic); its mode, buffers,
    gradients and torch's random state stay as they were.

    Args:
        model: Any module that takes one batch of images.
        input_size: One image, (c, h, w).
        attention: Paths of the attention blocks. By default the ``path`` of each entry of the model's
            ``attention_sites``, or none where it has no such attribute.
        classifier: Path or paths of the classifier. By default what the model's ``get_classifier()`` returns,
            or nothing.
        formulas: FLOP formulas for operators that torch has none for, as for
            ``torch.utils.flop_counter.register_flop_formula``: functions of shapes and ``out_shape=``.

    Raises:
        UnknownChoice: If a path names no module.
        InvalidInput: If the model cannot take such an image, or runs an operator without a formula.
    """
    model = _plain(model)
    size = _image_size(input_size)
    modules = dict(model.named_modules())
    if attention is None:
        attention = [site.path for site in getattr(model, "attention_sites", ())]
    if classifier is None:
        classifier = _classifier_paths(model, modules)
    owners = dict.fromkeys([classifier] if isinstance(classifier, str) else classifier, "classifier")
    owners |= dict.fromkeys(attention, "attention")
    for path in owners:
        choose(modules, path, "module path")

    formulas = formulas or {}
    flops = FlopCounterMode(display=False, custom_mapping=dict(formulas))
    work = OperatorCounter(flops, formulas)
    with _mode_kept(model), torch.inference_mode(False):
        model.eval()
        image = _images(model, 1, size)
        with torch.no_grad(), flops, work:
            _forward(model, image)
        model.train()
        saved_bytes = _saved_bytes(model, 3, size) - _saved_bytes(model, 2, size)

    root = type(model).__name__
    by_flops = {_path(key, root): sum(table.values()) for key, table in flops.get_flop_counts().items()}
    by_elements = {_path(key, root): amount for key, amount in work.elements.items()}
    by_module = {
        path: ModuleCount(
            kind=type(module).__name__,
            parameters=sum(p.numel() for p in module.parameters()),
            trainable=sum(p.numel() for p in module.parameters() if p.requires_grad),
            buffers=sum(b.numel() for b in module.buffers()),
            flops=by_flops.get(path, 0),
            elements=by_elements.get(path, 0),
        )
        for path, module in modules.items()
    }
    whole = by_module[""]
    return Count(
        input_size=size,
        parameters=whole.parameters,
        trainable=whole.trainable,
        buffers=whole.buffers,
        flops=flops.get_total_flops(),
        elements=work.elements["Global"],
        activation_bytes=work.allocated_bytes,
        saved_bytes=saved_bytes,
        disk_bytes={_name(dtype): _disk_bytes(model, dtype) for dtype in DISK_DTYPES},
        by_part=_parts(model, owners, by_module, flops.get_total_flops(), work.elements["Global"]),
        by_module=by_module,
    )


def _plain(model: nn.Module) -> nn.Module:
    """What a compiled model was made from, or one with a copy for each GPU; measure imports nothing of ours."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _image_size(input_size: Sequence[int]) -> tuple[int, int, int]:
    if (
        not isinstance(input_size, Sequence)
        or len(input_size) != 3
        or any(not isinstance(n, int) or n < 1 for n in input_size)
    ):
        raise InvalidInput(f"input_size must be (channels, height, width) of one image, got {input_size!r}")
    channels, height, width = input_size
    return channels, height, width


def _classifier_paths(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    get_classifier = getattr(model, "get_classifier", None)
    if not callable(get_classifier):
        return []
    found = get_classifier()
    wanted = {id(module) for module in (found if isinstance(found, (tuple, list)) else (found,))}
    return [path for path, module in modules.items() if id(module) in wanted and path]


def _parts(
    model: nn.Module,
    owners: Mapping[str, str],
    by_module: Mapping[str, ModuleCount],
    flops: int,
    elements: int,
) -> dict[str, PartCount]:
    """Shares by part; the backbone is what no other part owns, so the shares add up by construction."""
    parameters = dict.fromkeys(("backbone", "attention", "classifier"), 0)
    trainable = dict(parameters)
    for name, parameter in model.named_parameters():
        part = "backbone"
        for path, owner in owners.items():
            if name.startswith(path + "."):
                part = owner
        parameters[part] += parameter.numel()
        trainable[part] += parameter.numel() * parameter.requires_grad
    outermost = [path for path in owners if not any(path.startswith(other + ".") for other in owners)]
    run = {
        part: (
            sum(by_module[path].flops for path in outermost if owners[path] == part),
            sum(by_module[path].elements for path in outermost if owners[path] == part),
        )
        for part in ("attention", "classifier")
    }
    run["backbone"] = (
        flops - sum(owned for owned, _ in run.values()),
        elements - sum(owned for _, owned in run.values()),
    )
    return {part: PartCount(parameters[part], trainable[part], *run[part]) for part in parameters}


def _path(key: str, root: str) -> str:
    """The module path behind a key of torch's module tracker, which starts with the root's class name."""
    return "" if key == root else key.removeprefix(root + ".")


def _images(model: nn.Module, batch: int, size: tuple[int, int, int]) -> torch.Tensor:
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = None if first.device.type == "meta" else torch.Generator(first.device).manual_seed(0)
    return torch.randn((batch, *size), generator=generator, device=first.device, dtype=first.dtype)


def _forward(model: nn.Module, images: torch.Tensor, state: dict[str, torch.Tensor] | None = None) -> Any:
    try:
        if state is None:
            return model(images)
        return torch.func.functional_call(model, state, (images,))
    except FerattnError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        size = "x".join(map(str, images.shape[1:]))
        raise InvalidInput(f"{type(model).__name__} cannot take an image of {size}: {reason}") from error


def _saved_bytes(model: nn.Module, batch: int, size: tuple[int, int, int]) -> int:
    """Bytes that autograd keeps after one training forward pass over ``batch`` images."""
    kept: dict[int, torch.UntypedStorage] = {}
    # The pass updates copies, so the model's running statistics stay. A storage is kept alive while its
    # address serves as key, or a later tensor could reuse it.
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers(), *state.values())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    images = _images(model, batch, size)
    devices = [images.device] if images.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        _forward(model, images, state)
    return sum(storage.nbytes() for storage in kept.values())


def _disk_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    size, seen = 0, set()
    for tensor in model.state_dict(keep_vars=True).values():
        if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            itemsize = dtype.itemsize if tensor.is_floating_point() else tensor.element_size()
            size += tensor.numel() * itemsize
    return size


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _mode_kept(model: nn.Module) -> Any:
    """Leave every submodule in training or evaluation mode as it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
