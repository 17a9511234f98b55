"""What Lightning does not bring: a history that survives a kill, plateaus that resume exactly, atomic checkpoints."""

from __future__ import annotations

import csv
import io
import itertools
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ferattn.files import write_atomically
from ferattn.training.recipe import Recipe

__all__ = ["AtomicCheckpoints", "Checkpoints", "History", "MovingAverage", "Plateau"]


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are on the disk completely or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint beside its place, then put it there in one step."""
        del storage_options  # for remote file systems, which have no atomic replacement
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), buffer.getvalue())


class Checkpoints(ModelCheckpoint):
    """Lightning's, which would forget the best epoch so far where the folder of a run was moved."""

    @property
    def state_key(self) -> str:
        """As Lightning's own, so that earlier checkpoints keep their meaning."""
        key: str = super().state_key
        return key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from this state, whose paths are those of the folder as it was called then."""
        was, now = state_dict["dirpath"], self.dirpath

        def moved(path: str) -> str:
            return str(Path(str(now)) / Path(path).name) if path else path

        state = {**state_dict, "dirpath": now}
        if was != now:
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[name] = moved(state[name])
            state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state)


class History(Callback):
    """One row of metrics for each epoch, kept in the checkpoint and written as a CSV file.

    A resumed run goes on from the checkpoint's rows, so that no epoch is missing or twice.

    Args:
        path: The CSV file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._start = 0.0
        self._rate = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock at the first batch; Lightning announces no start of the epoch when it resumes."""
        if batch_idx == 0:
            self._start = time.perf_counter()
        self._rate = max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)  # later it is the next's

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch's row."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "lr": self._rate,
                "seconds": time.perf_counter() - self._start,
                **dict(sorted(metrics.items())),
            }
        )
        if trainer.is_global_zero:
            self.write()

    def write(self) -> None:
        """Write all rows."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, buffer.getvalue().encode())

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from these rows."""
        self.rows = list(state_dict["rows"])


class Plateau(Callback):
    """Reduce the learning rate when a metric has stopped improving: PyTorch's ``ReduceLROnPlateau``.

    Lightning steps its schedulers after the epoch's checkpoint was written, and does not repeat that when it
    resumes; this one is stepped before.

    Args:
        recipe: For the metric, the factor and the patience.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take hold of the optimizer."""
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            trainer.optimizers[0],
            mode="max" if self.recipe.plateau_monitor == "val_accuracy" else "min",
            factor=self.recipe.plateau_factor,
            patience=self.recipe.plateau_patience,
            min_lr=self.recipe.lr_min,
        )
        if self._state is not None:
            self._scheduler.load_state_dict(self._state)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the metric."""
        if self._scheduler is not None:
            self._scheduler.step(float(trainer.callback_metrics[self.recipe.plateau_monitor]))

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's."""
        return {} if self._scheduler is None else dict(self._scheduler.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until there is an optimizer."""
        self._state = state_dict


class MovingAverage(WeightAveraging):
    """An exponential moving average of the weights, which is what is validated and kept.

    The decay grows from 1/10 to its value as min(decay, (1 + step) / (10 + step)), so that the average soon forgets
    the random start and a short run has a useful one too.

    Args:
        decay: Share of the average that each step keeps in the end.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average where the training will be; the model itself is not there yet."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every step."""
        return step_idx is not None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go a step towards the weights. PyTorch's own update reads a number of the GPU's each time and waits."""
        step, averaged = trainer.global_step, self._average_model
        if step <= self._latest_update_step or averaged is None:
            return
        keep = min(self.decay, step / (9 + step)) if self._latest_update_step else 0.0
        pairs = list(
            zip(
                itertools.chain(averaged.module.parameters(), averaged.module.buffers()),
                itertools.chain(pl_module.parameters(), pl_module.buffers()),
                strict=True,
            )
        )
        for whole in (False, True):  # numbers of batches are counted, not averaged
            chosen = [pair for pair in pairs if pair[0].is_floating_point() != whole]
            if not chosen:
                continue
            averages, weights = ([tensor.detach() for tensor in side] for side in zip(*chosen, strict=True))
            if whole or not keep:
                torch._foreach_copy_(averages, weights)
            else:
                torch._foreach_lerp_(averages, weights, 1 - keep)
        averaged.n_averaged += 1
        self._latest_update_step = step
