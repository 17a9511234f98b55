"""What Lightning trains: a classifier of faces, and the batches it sees. Both take objects, never names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from ferattn.data import Batch, BatchTransform, CachedDataset, FaceDataset, Mixer, make_loader
from ferattn.errors import Diverged, InvalidInput, InvalidOption
from ferattn.training.recipe import Recipe
from ferattn.training.schedule import lr_factor
from ferattn.training.teaching import Teachers, distillation_loss

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

__all__ = ["FaceClassifier", "FaceData", "inverse_frequency", "make_optimizer"]

_LOOK_EVERY = 50
"""Steps between looks at the loss: each look waits for the GPU."""


class _Tally:
    """Losses and hits of an epoch, kept on the device; nothing is computed or waited for until they are asked for."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._sums: Tensor | None = None
        self._images = 0

    def __bool__(self) -> bool:
        """Whether there was a batch."""
        return self._images > 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """A batch: its mean loss, and what was said of its images."""
        self._waiting.append((loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()))
        self._images += len(labels)

    def gather(self) -> None:
        """Add up what waits."""
        if not self._waiting:
            return
        sums = torch.stack([torch.stack(column).double().sum() for column in zip(*self._waiting, strict=True)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._waiting.clear()

    def finish(self, strategy: Any) -> tuple[float, float]:
        """Mean loss and accuracy over all processes; begins anew."""
        self.gather()
        if self._sums is None:
            raise InvalidInput("an epoch without a batch has no mean.")
        total = torch.cat([self._sums, self._sums.new_tensor([self._images])])
        loss, hits, images = strategy.reduce(total, reduce_op="sum").tolist()
        self._sums, self._images = None, 0
        return loss / images, hits / images


class FaceClassifier(pl.LightningModule):
    """A model, its images' transform and a recipe's loss, optimizer and schedule, for any of Lightning's trainers.

    What a recipe has of plateaus and averaged weights is done by callbacks, ``Plateau(recipe)`` and
    ``MovingAverage(decay)``; ``fit`` gives them to its trainer, and whoever makes another gives it them.

    Args:
        model: From images to logits.
        transform: From 8-bit images to what the model sees; augments in training mode.
        recipe: For the loss, the optimizer and the schedule.
        seed: Of dropout; the transform and the mixer have their own.
        mixer: Mixup and CutMix, where wanted.
        class_weights: Weight of each class in the loss, shape (classes,).
        channels_last: Whether to keep images and weights in the channels-last memory format.
        fixed_batches: Whether to fill up smaller evaluation batches, so that a compiled model sees one shape only.
        teachers: Whose answers it learns from beside the labels.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        transform: BatchTransform,
        recipe: Recipe,
        *,
        seed: int = 0,
        mixer: Mixer | None = None,
        class_weights: Tensor | None = None,
        channels_last: bool = False,
        fixed_batches: bool = False,
        teachers: Teachers | None = None,
    ) -> None:
        super().__init__()
        self.teachers = teachers
        if teachers is not None:
            teachers.require(transform)
        self.fixed_batches, self._rows = fixed_batches, 0
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=memory_format)
        self.memory_format = memory_format
        self.transform, self.recipe, self.mixer, self.seed = transform, recipe, mixer, seed
        self.register_buffer("class_weights", class_weights, persistent=False)
        self._tallies = {"train": _Tally(), "val": _Tally(), "test": _Tally()}
        self._losses: list[tuple[int, float, Tensor]] = []  # step, learning rate, loss: not looked at yet

    def forward(self, images: Tensor) -> Tensor:
        """From transformed images to logits."""
        rows = len(images)
        if self.fixed_batches and not self.training:
            self._rows = max(self._rows, rows)
            images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, self._rows - rows))
        logits: Tensor = self.model(images.contiguous(memory_format=self.memory_format))
        return logits[:rows]

    def pictures(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the model sees of a batch and what it should say; in training mode augmented, and mixed in its epochs.

        In fp32 whatever the run's precision: autocast would round the places at which images are resampled, in bf16
        to a tenth of a pixel, and ZCA's products.
        """
        with torch.autocast(batch.images.device.type, enabled=False):
            if not self.training:
                return self.transform(batch.images), batch.labels
            images = self.transform(batch.images, batch.indices, self.current_epoch)
            if self.mixer is None or self.current_epoch >= self.recipe.epochs - self.recipe.mix_off_epochs:
                return images, batch.labels
            return self.mixer(images, batch.labels, batch.indices, self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        # Dropout by seed, step and process: a step is the same whether the run was interrupted before or not.
        _seed((self.seed * 100_003 + self.global_step) * 4099 + self.global_rank, batch.images.device)
        images, targets = self.pictures(batch)
        logits = self(images).float()
        loss = F.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.recipe.label_smoothing
        )
        if self.teachers is not None:
            share, temperature = self.recipe.distill_weight, self.recipe.distill_temperature
            answers = self.teachers(images, self.transform, temperature)
            loss = (1 - share) * loss + share * distillation_loss(logits, answers, temperature)
        self._tallies["train"].add(loss, logits, batch.labels)
        self._watch(loss.detach())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss (plain cross-entropy) and accuracy of a batch."""
        self._look_at("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss (plain cross-entropy) and accuracy of a batch."""
        self._look_at("test", batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits of a batch. Shape: (b, classes)."""
        logits: Tensor = self(self.pictures(batch)[0]).float()
        return logits

    def _look_at(self, name: str, batch: Batch, batch_idx: int) -> None:
        logits = self.predict_step(batch, batch_idx)
        self._tallies[name].add(F.cross_entropy(logits, batch.labels), logits, batch.labels)

    def on_fit_start(self) -> None:
        """Have the teachers where the model is, and nothing of a training that was broken off."""
        self._tallies = {name: _Tally() for name in self._tallies}
        if self.teachers is not None:
            self.teachers.to(self.device, self.memory_format)

    def on_validation_start(self) -> None:
        """Look at the losses that have not been looked at, before anything is saved."""
        self._look()

    def on_validation_epoch_end(self) -> None:
        """Report the epoch, training and validation; refuse a model whose validation loss is not finite."""
        fitting = self.trainer.state.fn == TrainerFn.FITTING  # or a Trainer's validate, to which no training belongs
        if fitting:
            self._report("train")
        if math.isfinite(self._report("val")) or not fitting:
            return
        raise Diverged(
            f"the validation loss is not finite after epoch {self.current_epoch} (step {self.global_step}), "
            f"learning rate {self._rate():g}. Try a smaller learning rate."
        )

    def on_test_epoch_end(self) -> None:
        """Report ``test_loss`` and ``test_accuracy``."""
        self._report("test")

    def _report(self, name: str) -> float:
        """Log what a tally holds, if anything; the mean loss."""
        tally, several = self._tallies[name], self.trainer.world_size > 1
        if not tally:  # no step of training comes before Lightning's own check of the validation, or with it alone
            return 0.0
        loss, accuracy = tally.finish(self.trainer.strategy)
        self.log(f"{name}_loss", loss, prog_bar=name == "val", sync_dist=several)
        self.log(f"{name}_accuracy", accuracy, prog_bar=True, sync_dist=several)
        return loss

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, with a schedule by step where it has one; plateaus are a callback's."""
        recipe = self.recipe
        # In half precision Lightning unscales gradients before it clips them, which a fused optimizer does itself.
        fused = self.device.type == "cuda" and self.trainer.precision != "16-mixed"
        optimizer = make_optimizer(self.model, recipe, fused=fused)
        steps = int(self.trainer.estimated_stepping_batches)
        per_epoch = max(1, steps // recipe.epochs)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if recipe.schedule == "one-cycle":
            # Adam's beta1 is cycled like a momentum, as PyTorch has it.
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps
            )
        else:
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(recipe, step, per_epoch))
        if recipe.schedule == "plateau":
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, and with fused optimizers too: it refuses those even where nothing is scaled."""
        if self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def _rate(self) -> float:
        return max(float(group["lr"]) for group in self.trainer.optimizers[0].param_groups)

    def _watch(self, loss: Tensor) -> None:
        """Keep the loss for the next look, without waiting for the device."""
        step = self.global_step
        self._losses.append((step, self._rate(), loss))
        if step % _LOOK_EVERY == 0:
            self._look()

    def _look(self) -> None:
        """Find the first step whose loss is not finite."""
        if not self._losses:
            return
        self._tallies["train"].gather()
        bad = ~torch.isfinite(torch.stack([loss for _, _, loss in self._losses]))
        # Any process that has seen one stops all of them.
        bad = self.trainer.strategy.reduce(bad.float(), reduce_op="max").bool()
        if bad.any():
            step, rate, _ = self._losses[int(bad.float().argmax())]
            raise Diverged(
                f"the loss is not finite at step {step} (epoch {self.current_epoch}), learning rate {rate:g}. "
                "Try a smaller learning rate, a warm-up or clip_norm."
            )
        self._losses.clear()


class FaceData(pl.LightningDataModule):
    """Batches for training and validation, divided among the processes of a run.

    Args:
        train: Training images.
        validation: Images on which the best epoch is chosen.
        batch_size: Images in a training step, over all processes together.
        seed: Of the order.
        workers: Processes that load images beside each main one; 0 for images in memory.

    Raises:
        InvalidOption: If the training images do not fill a batch.
    """

    def __init__(
        self, train: FaceDataset, validation: FaceDataset, *, batch_size: int, seed: int = 0, workers: int = 0
    ) -> None:
        super().__init__()
        if len(train) < batch_size:
            raise InvalidOption(
                f"batch_size={batch_size}: there are only {len(train)} training images. Give a smaller batch_size."
            )
        self.train, self.validation = train, validation
        self.batch_size, self.seed, self.workers = batch_size, seed, workers

    def setup(self, stage: str) -> None:
        """Check the number of processes, and put images in memory on the GPU where that has room for them."""
        world, device = self._trainer.world_size, self._trainer.strategy.root_device
        if self.batch_size % world:
            raise InvalidOption(f"batch_size={self.batch_size}: not divisible by the {world} processes.")
        if len(self.validation) < world:
            raise InvalidOption(f"{world} processes: there are only {len(self.validation)} validation images.")
        stored = [part for part in (self.train, self.validation) if isinstance(part, CachedDataset)]
        if device.type == "cuda" and not self.workers and _fits(stored, device):
            self.train, self.validation = (
                part.to(device) if isinstance(part, CachedDataset) else part for part in (self.train, self.validation)
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled by seed and epoch; a last batch that is not full is left out, and differs by epoch."""
        trainer = self._trainer
        return make_loader(
            self.train,
            self.batch_size // trainer.world_size,
            shuffle=True,
            seed=self.seed,
            drop_last=True,
            workers=self.workers,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """In order; every image in exactly one process, as many batches in each."""
        trainer = self._trainer
        share, left_over = divmod(len(self.validation), trainer.world_size)
        batch_size = max(1, min(512, share))
        # Processes with one image more must not need one batch more: the others would wait for ever.
        while left_over and share % batch_size == 0:
            batch_size += 1
        return make_loader(
            self.validation,
            batch_size,
            workers=self.workers,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )

    @property
    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise InvalidOption("FaceData gives batches to a Trainer; for a loop of your own there is make_loader.")
        return self.trainer


def _fits(parts: Sequence[CachedDataset], device: torch.device) -> bool:
    """Whether a quarter of the GPU's free memory is enough for the images."""
    return sum(part.images.nbytes for part in parts) < torch.cuda.mem_get_info(device)[0] / 4


def _seed(seed: int, device: torch.device) -> None:
    """Seed the device's own generator and the CPU's; torch.manual_seed takes a millisecond to reach all that is."""
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def make_optimizer(model: nn.Module, recipe: Recipe, *, fused: bool = False) -> torch.optim.Optimizer:
    """The recipe's optimizer, with smaller steps for earlier layers where it asks for that.

    Args:
        model: Its parameters are trained.
        recipe: For the optimizer and its numbers.
        fused: Whether to change all parameters in one operation, as PyTorch can on a GPU.

    Raises:
        InvalidOption: If layer decay is asked for and the model does not know its layers.
    """
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
            fused=fused or None,
        )
    common: dict[str, Any] = {"lr": recipe.lr, "fused": fused or None}
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), weight_decay=recipe.weight_decay, **common)
    if recipe.layer_decay == 1:
        return torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay, **common)
    if not hasattr(model, "group_matcher"):
        raise InvalidOption(f"layer_decay={recipe.layer_decay}: {type(model).__name__} has no group_matcher.")
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(model, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay)
    scaled = [group | {"lr": recipe.lr * group.pop("lr_scale")} for group in groups]
    return torch.optim.AdamW(scaled, **common)


def inverse_frequency(counts: Mapping[str, int]) -> Tensor:
    """Weights in inverse proportion to the number of images, 1 on average over images. Shape: (classes,).

    >>> inverse_frequency({"happy": 30, "disgust": 10}).tolist()
    [0.666..., 2.0]
    """
    numbers = torch.tensor(list(counts.values()), dtype=torch.float32)
    return numbers.sum() / (len(numbers) * numbers)
