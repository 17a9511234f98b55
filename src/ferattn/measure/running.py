"""Turns a candidate (what to run and how) into a call without arguments that a clock can be held to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ferattn.errors import InvalidOption, NotCompiled, choose

__all__ = ["Candidate", "Running", "compiling", "prepare", "resolve_device"]


@dataclass(frozen=True)
class Candidate:
    """What to run, and how.

    Attributes:
        run: A module or any function of tensors.
        inputs: The tensors to pass, or the shape of one random tensor, batch first.
        step: "inference" (evaluation mode, no gradients), "forward_backward" (training mode; gradients of the
            inputs and of every parameter against a fixed random one of the output) or "training" (the same
            without the inputs' gradients, then one step of SGD with momentum; for modules).
        mode: "eager", "compiled" (``torch.compile`` without graph breaks) or "cuda_graph".
        channels_last: Put the module and its four-dimensional inputs into channels_last memory format.
        autocast: Run the forward pass under ``torch.autocast`` in this dtype.
        device: "auto", "cpu", "cuda", ...; by default where the module or the tensors are.
    """

    run: Callable[..., Any]
    inputs: Sequence[int] | torch.Tensor | Sequence[torch.Tensor]
    step: str = "inference"
    mode: str = "eager"
    channels_last: bool = False
    autocast: torch.dtype | None = None
    device: str | torch.device | None = None


@contextmanager
def compiling() -> Iterator[None]:
    """Start with an empty compile cache and make sure that "compiled" is never a silent fall-back to eager.

    Dynamo returns to eager after eight recompilations of one function, and all candidates of one class share
    their ``forward``.
    """
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=256, fail_on_recompile_limit_hit=True):
        yield


@dataclass(frozen=True)
class Running:
    """A candidate that is ready to be called."""

    call: Callable[[], Any]
    device: torch.device
    batch: int
    inputs: tuple[torch.Tensor, ...]
    module: nn.Module | None
    optimizer: torch.optim.Optimizer | None = None

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        elif self.device.type == "xpu":
            torch.xpu.synchronize(self.device)

    def held_bytes(self) -> int:
        """Bytes of parameters, buffers, gradients, optimiser state and inputs that stay between calls."""
        tensors: list[torch.Tensor] = list(self.inputs)
        if self.module is not None:
            parameters = list(self.module.parameters())
            tensors += [*parameters, *self.module.buffers()]
            tensors += [p.grad for p in parameters if p.grad is not None]
        if self.optimizer is not None:
            tensors += [v for state in self.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
        return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name, if it is there; "auto" is the accelerator where there is one, else the CPU.

    Raises:
        InvalidOption: If torch knows no such device, or this machine has none.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    there = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        there += [f"{kind.type}:{n}" for n in range(torch.accelerator.device_count())] if kind else []
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise InvalidOption(f"device {device!r} is none that torch knows; here: auto, {', '.join(there)}") from None
    if wanted.type != "cpu" and f"{wanted.type}:{wanted.index or 0}" not in there:
        raise InvalidOption(f"device {str(device)!r} is not on this machine; here: auto, {', '.join(there)}")
    return wanted


def prepare(candidate: Candidate) -> Running:
    """Copy, place, lay out and compile a candidate.

    Raises:
        InvalidOption: If its options are impossible or contradict each other.
    """
    module = copy.deepcopy(candidate.run) if isinstance(candidate.run, nn.Module) else None
    device = _device(candidate, module)
    step = choose(_STEPS, candidate.step, "step")
    capture = choose(_MODES, candidate.mode, "mode")
    if candidate.step == "training" and (module is None or not any(p.requires_grad for p in module.parameters())):
        raise InvalidOption('step="training" needs a module with trainable parameters; or step="forward_backward"')
    if candidate.mode == "cuda_graph" and device.type != "cuda":
        raise InvalidOption(f'mode="cuda_graph" needs a CUDA device, this runs on {device}')
    floating = (p.dtype for p in (() if module is None else module.parameters()) if p.is_floating_point())
    inputs = _inputs(candidate.inputs, device, next(floating, torch.float32), candidate.channels_last)
    if module is not None:
        module.to(device)
        if candidate.channels_last:
            module.to(memory_format=torch.channels_last)
        module.train(candidate.step != "inference")
    forward: Callable[..., Any] = module if module is not None else candidate.run
    if candidate.mode == "compiled":
        forward = _compiled(forward)
    if candidate.autocast is not None:
        forward = _autocast(forward, device, candidate.autocast)
    call, optimizer = step(forward, module, inputs)
    return Running(capture(call, device), device, inputs[0].shape[0], inputs, module, optimizer)


def _device(candidate: Candidate, module: nn.Module | None) -> torch.device:
    if candidate.device is not None:
        return resolve_device(candidate.device)
    tensors: list[torch.Tensor] = list(module.parameters()) if module is not None else []
    if isinstance(candidate.inputs, torch.Tensor):
        tensors.append(candidate.inputs)
    else:
        tensors += [t for t in candidate.inputs if isinstance(t, torch.Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    if device.type == "meta":
        raise InvalidOption("the model is on the meta device, where nothing runs; move it, or build it elsewhere")
    return device


def _inputs(
    inputs: Sequence[int] | torch.Tensor | Sequence[torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[torch.Tensor, ...]:
    if isinstance(inputs, torch.Tensor):
        tensors = [inputs]
    elif inputs and all(isinstance(n, int) and n > 0 for n in inputs):
        generator = torch.Generator(device).manual_seed(0)
        shape = tuple(n for n in inputs if isinstance(n, int))
        tensors = [torch.randn(shape, generator=generator, device=device).to(dtype)]
    elif inputs and all(isinstance(t, torch.Tensor) for t in inputs):
        tensors = list(inputs)  # type: ignore[arg-type]
    else:
        raise InvalidOption(f"inputs must be tensors or the shape of one, batch first, got {inputs!r}")
    tensors = [t.detach().to(device) for t in tensors]
    if tensors[0].ndim == 0:
        raise InvalidOption("the first input must have a batch axis, got a scalar")
    if channels_last:
        tensors = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
    return tuple(tensors)


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` compiled for these shapes without graph breaks."""
    compiled = torch.compile(forward, fullgraph=True, dynamic=False)

    def run(*inputs: torch.Tensor) -> Any:
        try:
            return compiled(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise NotCompiled(f'mode="compiled" failed: {reason}') from error

    return run


def _autocast(forward: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> Callable[..., Any]:
    def run(*inputs: torch.Tensor) -> Any:
        with torch.autocast(device.type, dtype):
            return forward(*inputs)

    return run


Step = tuple[Callable[[], Any], torch.optim.Optimizer | None]


def _inference(forward: Callable[..., Any], module: nn.Module | None, inputs: tuple[torch.Tensor, ...]) -> Step:
    def call() -> Any:
        with torch.no_grad():
            return forward(*inputs)

    return call, None


def _forward_backward(
    forward: Callable[..., Any], module: nn.Module | None, inputs: tuple[torch.Tensor, ...]
) -> Step:
    for tensor in inputs:
        if tensor.is_floating_point():
            tensor.requires_grad_()
    leaves = [t for t in (*inputs, *(module.parameters() if module is not None else ())) if t.requires_grad]
    gradient = _output_gradient(forward, inputs)

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(forward(*inputs), gradient)

    return call, None


def _training(forward: Callable[..., Any], module: nn.Module | None, inputs: tuple[torch.Tensor, ...]) -> Step:
    parameters: Iterable[nn.Parameter] = module.parameters() if module is not None else ()
    # A learning rate of zero keeps the weights finite however long the clock runs; the work is the same.
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)
    gradient = _output_gradient(forward, inputs)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(forward(*inputs), gradient)
        optimizer.step()

    return call, optimizer


def _output_gradient(forward: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    out = forward(*inputs)
    if not isinstance(out, torch.Tensor) or not out.requires_grad:
        raise InvalidOption("a backward pass needs one output tensor that depends on an input or a parameter")
    generator = torch.Generator(out.device).manual_seed(1)
    gradient = torch.randn(out.shape, generator=generator, device=out.device, dtype=out.dtype)
    return torch.empty_like(out).copy_(gradient).detach()


def _as_it_is(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    return call


def _cuda_graph(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Record one call and replay it; torch asks for a few calls on a side stream before the recording."""
    with torch.cuda.device(device):
        return _recorded(call)


def _recorded(call: Callable[[], Any]) -> Callable[[], Any]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


_STEPS: dict[str, Callable[..., Step]] = {
    "inference": _inference,
    "forward_backward": _forward_backward,
    "training": _training,
}
_MODES: dict[str, Callable[[Callable[[], Any], torch.device], Callable[[], Any]]] = {
    "eager": _as_it_is,
    "compiled": _as_it_is,
    "cuda_graph": _cuda_graph,
}
