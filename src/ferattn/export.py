"""A network as one file that runs without ferattn: ONNX, or a program of ``torch.export``.

What is written has been run: the file's own runtime gets the same pictures as the network, in two batch sizes unless
one is fixed, and a file whose outputs differ is not written.

>>> from ferattn import create_model
>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> exported = export_program(create_model("cnn_se"), folder / "cnn_se.pt2")
>>> exported.inputs, exported.outputs
({'images': ('batch', 1, 48, 48)}, {'logits': ('batch', 7)})
>>> torch.export.load(exported.path).module()(torch.zeros(5, 1, 48, 48)).shape
torch.Size([5, 7])
"""

from __future__ import annotations

import copy
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import ferattn
from ferattn.errors import InvalidInput, InvalidOption, MissingDependency, choose, require_whole
from ferattn.files import write_atomically
from ferattn.wrappers import unwrap

__all__ = [
    "FORMATS",
    "METADATA",
    "EmotionNetwork",
    "Exported",
    "export_onnx",
    "export_program",
    "provenance",
    "writer_of",
]

_LEAST_OPSET = 18  # torch has no older operators, and writes newer ones where it is asked for them
METADATA = "ferattn.json"
"""Under which name a program of ``torch.export`` keeps what it was told of itself."""


class EmotionNetwork(nn.Module):
    """From 8-bit pictures to logits and calibrated probabilities, in one module.

    Args:
        model: From what the transform makes to logits.
        transform: From 8-bit pictures to what the model sees, as the training had it.
        temperature: By which logits are divided before the softmax.

    Shape: (b, c, h, w) of uint8 to two of (b, k)

    Raises:
        InvalidOption: If the temperature is not a positive number.
    """

    def __init__(self, model: nn.Module, transform: nn.Module, *, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise InvalidOption(f"temperature={temperature!r}: a positive number.")
        self.model, self.transform, self.temperature = model, transform, temperature

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the probabilities."""
        images = self.transform(pictures).to(next(self.model.parameters()).dtype)
        logits: Tensor = self.model(images)
        return logits, (logits.float() / self.temperature).softmax(-1)


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how near it comes to the network.

    Attributes:
        path: The file.
        format: ``"ONNX, opset <number>"`` or ``"torch.export"``.
        bytes: Its size.
        inputs: Shape of each input; ``"batch"`` where any number will do.
        outputs: Shape of each output.
        largest_difference: Of any output from the network's own, where both computed the same pictures.
        largest_output: The largest output there, to compare with.
    """

    path: Path
    format: str
    bytes: int
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    largest_difference: float
    largest_output: float


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example: Tensor | None = None,
    *,
    batch_size: int | None = None,
    opset: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a network as an ONNX file, weights included, after ONNX Runtime has computed what PyTorch does.

    The network itself stays as it is; a copy is exported in evaluation mode, uncompiled, from the CPU.

    Args:
        model: Any network of ours, or an :class:`EmotionNetwork`.
        path: The file; one that is there is replaced once the new one has been checked.
        example: Images to check with, (b, c, h, w); random ones of the model's own ``input_size`` by default.
        batch_size: How many images the file will take at a time, and as many of the example are looked at; any number
            by default.
        opset: Version of ONNX's operators, 18 or later, for a runtime that is not the newest; by default what torch
            chooses.
        metadata: Written into the file's properties, each value as JSON.

    Raises:
        InvalidInput: If the network does not take the example, or what the file computes differs from the network or
            is no number.
        InvalidOption: If there is no example and the model does not say what images it takes, or the file cannot be
            written, or torch does not write this opset or ONNX Runtime not run it, or the network is neither float32
            nor float16, or the metadata cannot be JSON.
        MissingDependency: If onnx, onnxscript or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise MissingDependency(f'ONNX needs {error.name}: pip install "ferattn[export]"') from error
    job = _prepare(model, example, batch_size)
    properties = {key: _as_json(value) for key, value in (metadata or {}).items()}
    kinds = {parameter.dtype for parameter in job.network.parameters()} - {torch.float32, torch.float16}
    if kinds:
        raise InvalidOption(f"ONNX Runtime convolves float32 and float16 on a CPU; this network has {kinds.pop()}.")
    if opset is not None:
        newest = onnx.defs.onnx_opset_version()
        if require_whole(opset, "opset", least=_LEAST_OPSET) > newest:
            raise InvalidOption(f"opset={opset}: the installed onnx knows {_LEAST_OPSET} to {newest}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter and of its own dependencies
        program = torch.onnx.export(
            job.network,
            (job.images,),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[job.input_name],
            output_names=job.output_names,
            dynamic_shapes=job.dynamic_shapes,
        )
    if program is None:  # what torch's signature allows, for its older exporter
        raise InvalidInput("torch's exporter gave no program.")
    written = program.model.opset_imports[""]
    if opset not in (None, written):
        raise InvalidOption(f"opset={opset}: this torch writes {written} instead; ask for that, or for none.")
    program.model.metadata_props.update(properties)
    content = program.model_proto.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no class in common
        told = f"ONNX Runtime {onnxruntime.__version__} does not run it ({error})."
        raise InvalidOption(f"opset {written}: {told}") from error

    def run(batch: Tensor) -> list[Tensor]:
        return [torch.from_numpy(array) for array in session.run(None, {job.input_name: batch.numpy()})]

    return _write(job, Path(path), f"ONNX, opset {written}", content, run)


def export_program(
    model: nn.Module,
    path: str | Path,
    example: Tensor | None = None,
    *,
    batch_size: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a network as a program of ``torch.export``: PyTorch opens it without ferattn and without timm.

    ``torch.export.load(path).module()`` is a module again, which can be compiled and moved to a GPU
    (``torch.export.passes.move_to_device_pass``).

    Args:
        model: As for :func:`export_onnx`, in any precision.
        path: Likewise.
        example: Likewise.
        batch_size: Likewise.
        metadata: Found again by ``torch.export.load(path, extra_files={METADATA: ""})``, as JSON.

    Raises:
        InvalidInput: If the network does not take the example, or what the file computes differs from the network or
            is no number.
        InvalidOption: If there is no example and the model does not say what images it takes, or the file cannot be
            written, or the metadata cannot be JSON.
    """
    job = _prepare(model, example, batch_size)
    properties = _as_json(dict(metadata or {}))
    program = torch.export.export(job.network, (job.images,), dynamic_shapes=job.dynamic_shapes, strict=False)
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={METADATA: properties})
    content = stream.getvalue()
    again = torch.export.load(io.BytesIO(content)).module()

    def run(batch: Tensor) -> list[Tensor]:
        return _outputs(again(batch))

    return _write(job, Path(path), "torch.export", content, run)


FORMATS: dict[str, Callable[..., Exported]] = {".onnx": export_onnx, ".pt2": export_program}
"""What writes a file, by the end of its name."""


def writer_of(path: Path) -> Callable[..., Exported]:
    """What writes a file of this name.

    Raises:
        UnknownChoice: If its end is none of ``FORMATS``.
    """
    return choose(FORMATS, path.suffix.lower(), "format")


def provenance() -> dict[str, str]:
    """Which packages made a file, for its metadata."""
    return {"ferattn": ferattn.__version__, "torch": torch.__version__, "timm": timm.__version__}


@dataclass(frozen=True, eq=False)
class _Job:
    """A copy of the network to export, and images that it takes, as many as are exported."""

    network: nn.Module
    images: Tensor
    batch_size: int | None
    output_names: list[str]

    @property
    def input_name(self) -> str:
        return "pictures" if isinstance(self.network, EmotionNetwork) else "images"

    @property
    def dynamic_shapes(self) -> tuple[dict[int, Any]] | None:
        return ({0: torch.export.Dim("batch")},) if self.batch_size is None else None

    def shape_of(self, tensor: Tensor) -> tuple[int | str, ...]:
        """As it is told to the user."""
        return "batch" if self.batch_size is None else self.batch_size, *tensor.shape[1:]


def _prepare(model: nn.Module, example: Tensor | None, batch_size: int | None) -> _Job:
    network = copy.deepcopy(unwrap(model)).cpu().eval()
    # A batch of one would be taken as fixed.
    wanted = 2 if batch_size is None else require_whole(batch_size, "batch_size", least=1)
    if example is None:
        example = _random_images(network, wanted)
    if not isinstance(example, Tensor) or example.ndim != 4 or not len(example):
        what = f"of shape {tuple(example.shape)}" if isinstance(example, Tensor) else f"a {type(example).__name__}"
        raise InvalidInput(f"example {what}: a tensor of images (b, c, h, w) is needed.")
    images = example.detach().cpu().clone()
    images = images.repeat(-(-wanted // len(images)), 1, 1, 1)[: wanted if batch_size else None]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            found = network(images)
    except (RuntimeError, ValueError, TypeError) as error:
        told = f"{images.dtype} of shape {tuple(images.shape)}"
        raise InvalidInput(f"{type(network).__name__} does not take images that are {told}: {error}") from error
    return _Job(network, images, batch_size, _names(network, len(_outputs(found))))


def _random_images(network: nn.Module, count: int) -> Tensor:
    about = getattr(network.model if isinstance(network, EmotionNetwork) else network, "pretrained_cfg", None) or {}
    size = about.get("input_size")
    if size is None:
        raise InvalidOption(f"{type(network).__name__} does not say what images it takes: give an example of them.")
    generator = torch.Generator().manual_seed(0)
    if isinstance(network, EmotionNetwork):
        return torch.randint(0, 256, (count, *size), dtype=torch.uint8, generator=generator)
    parameter = next(network.parameters(), torch.zeros(1))
    return torch.randn(count, *size, generator=generator).to(parameter.dtype)


def _names(network: nn.Module, outputs: int) -> list[str]:
    """Of each output."""
    if isinstance(network, EmotionNetwork):
        return ["logits", "probabilities"]
    if outputs > 1:
        return [f"output_{index}" for index in range(outputs)]
    return ["features" if getattr(network, "num_classes", None) == 0 else "logits"]


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise InvalidOption(f"metadata that cannot be JSON: {value!r} ({error}).") from error


def _outputs(found: Any) -> list[Tensor]:
    outputs = [found] if isinstance(found, Tensor) else list(found)
    if not all(isinstance(output, Tensor) for output in outputs):
        raise InvalidInput("only networks that return a tensor, or several, can be exported.")
    return outputs


def _write(job: _Job, path: Path, name: str, content: bytes, run: Callable[[Tensor], Sequence[Tensor]]) -> Exported:
    """Compare what the file computes with the network, then write it."""
    images = job.images
    batches = [images] if job.batch_size else [images, images.flip(0).repeat(2, 1, 1, 1)[: len(images) + 1]]
    difference = largest = 0.0
    with torch.inference_mode():
        for batch in batches:
            expected = _outputs(job.network(batch))
            for one, other in zip(expected, run(batch), strict=True):
                if not (one.isfinite().all() and other.isfinite().all()):
                    raise InvalidInput(f"{path} was not written: not all outputs are finite numbers.")
                difference = max(difference, float((one.double() - other.double()).abs().max()))
                largest = max(largest, float(one.double().abs().max()))
    # Half of the digits: sums in another order cost the last few of them, another formula costs them all.
    allowed = math.sqrt(torch.finfo(expected[0].dtype).eps) * largest
    if not difference <= allowed:
        raise InvalidInput(
            f"{path} was not written: its outputs differ from the network's by up to {difference:.3g}, and the "
            f"largest of them is {largest:.3g}."
        )
    done = Exported(
        path=path,
        format=name,
        bytes=len(content),
        inputs={job.input_name: job.shape_of(images)},
        outputs={key: job.shape_of(one) for key, one in zip(job.output_names, expected, strict=True)},
        largest_difference=difference,
        largest_output=largest,
    )
    write_atomically(path, content)
    return done
