"""Where and how a run is carried out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from ferattn.errors import InvalidOption, choose
from ferattn.processors import is_slow_in_bfloat16, processor_name

__all__ = ["PRECISIONS", "Machine", "warn_of_slow_precision"]

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Our names for Lightning's."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how a run is carried out.

    Attributes:
        accelerator: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        devices: Processes on each machine.
        num_nodes: Machines.
        precision: An entry of ``PRECISIONS``, for training and for the validation that chooses the epoch. The figures
            at the end are those of the weights that are kept, in fp32, as ``ferattn evaluate`` finds them.
        compile: Whether to compile the model, likewise.
        channels_last: Whether to keep images and weights in the channels-last memory format, likewise.
        workers: Processes that load images; 0 for images in memory.
        deterministic: Whether to insist on operations that repeat bit by bit. If not, and on a GPU, matrix products
            in fp32 may use TF32, and cuDNN tries its algorithms out and takes the fastest. On a GPU set
            ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` before the process multiplies its first matrices, or cuBLAS refuses.
        checkpoint_epochs: Epochs between the checkpoints from which a run is resumed.
        progress: Whether to show a progress bar.
        tensorboard: Whether to write logs for TensorBoard.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = False
    workers: int = 0
    deterministic: bool = False
    checkpoint_epochs: int = 1
    progress: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        choose(PRECISIONS, self.precision, "precision")
        choose(dict.fromkeys(("auto", "cpu", "gpu")), self.accelerator, "accelerator")
        least = {"devices": 1, "num_nodes": 1, "workers": 0, "checkpoint_epochs": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InvalidOption(f"{name}={getattr(self, name)!r}: at least {low}.")


def warn_of_slow_precision(machine: Machine, device: str) -> None:
    """Say so if fp32 would be many times as fast on the device: ``"cpu"`` or another type of ``torch.device``."""
    if device == "cpu" and machine.precision == "bf16" and is_slow_in_bfloat16():
        warnings.warn(
            f"precision='bf16' on this processor ({processor_name()}), which has no AVX-512: a step takes many times "
            "as long as with precision='fp32'.",
            stacklevel=3,
        )
