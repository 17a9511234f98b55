"""Train a model by a recipe into a folder, from the start or from where a run was interrupted."""

from __future__ import annotations

import logging
import pickle
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar
from torch import nn

from ferattn.data import (
    AUGMENTATIONS,
    BatchTransform,
    CachedDataset,
    Standardize,
    equalised_share,
    make_mixer,
    make_transform,
)
from ferattn.errors import Diverged, InvalidInput, InvalidOption, MissingDependency, choose
from ferattn.training.callbacks import AtomicCheckpoints, Checkpoints, History, MovingAverage, Plateau
from ferattn.training.evaluation import evaluate, fit_temperature
from ferattn.training.folder import RunFolder
from ferattn.training.machine import PRECISIONS, Machine, warn_of_slow_precision
from ferattn.training.memory import keep_freed_memory
from ferattn.training.module import FaceClassifier, FaceData, inverse_frequency
from ferattn.training.parts import Parts, picture_size
from ferattn.training.pictures import draw_confusion, draw_curves
from ferattn.training.predictions import Predictions, predict
from ferattn.training.recipe import Recipe
from ferattn.training.teaching import Teachers

__all__ = ["fit"]


def fit(
    model: nn.Module,
    parts: Parts,
    recipe: Recipe,
    out: Path,
    *,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
    teachers: Teachers | None = None,
) -> RunFolder:
    """Train, keep the best epoch, and test it once.

    A run that was interrupted, at any moment and in any way, is taken up again by the same call and ends in the
    same weights as if it had not been (on a GPU up to rounding, unless the machine is to be deterministic); one that
    has finished is left as it is. Until then ``recipe.epochs`` may be raised or lowered where
    :attr:`Recipe.open_ended` allows it: it ends as if it had always been to have so many.

    Args:
        model: From images to logits, its weights as training should start; it ends with those of the best epoch.
        parts: Training, selection and test images.
        recipe: What to do.
        out: The folder of the run.
        seed: Of the order, the augmentation and dropout. The model's initial weights are the caller's.
        about: What else belongs into the config, such as the model's name.
        machine: Where and how.
        teachers: Networks whose answers it learns from beside the labels.

    Returns:
        The folder, finished. In a run over several processes only the first one writes.

    Raises:
        InvalidOption: If the folder holds a run with another config, the training images do not fill a batch, or
            a file cannot be written.
        Diverged: If the loss is no finite number; says which checkpoint from before is kept, if any.
    """
    machine = Machine() if machine is None else machine
    folder = RunFolder(Path(out))
    config = _config(parts, recipe, seed, about or {}, machine, teachers)
    transform = _transform(model, parts, recipe, seed)
    classes = len(parts.train.classes)
    task = FaceClassifier(
        model,
        transform,
        recipe,
        seed=seed,
        mixer=make_mixer(AUGMENTATIONS[recipe.augmentation], classes, seed=seed),
        class_weights=inverse_frequency(parts.train.counts()) if recipe.class_weights else None,
        channels_last=machine.channels_last,
        fixed_batches=machine.compile,
        teachers=teachers,
    )
    data = FaceData(parts.train, parts.validation, batch_size=recipe.batch_size, seed=seed, workers=machine.workers)
    history = History(folder.path / "metrics.csv")
    if machine.compile:
        model.compile(dynamic=False)  # every batch has the same shape
    start = time.perf_counter()
    with _quiet(), ExitStack() as stack:
        with _fast_arithmetic(machine):
            trainer = _trainer(folder, recipe, machine, history)
            if trainer.is_global_zero:
                stack.enter_context(folder.claim(config, open_ended=recipe.open_ended))
            if folder.finished:
                if folder.weights.exists():
                    folder.load_weights(model)
                return folder
            warn_of_slow_precision(machine, trainer.strategy.root_device.type)
            if trainer.strategy.root_device.type == "cpu":
                stack.enter_context(keep_freed_memory())
            if not _stopped_early(folder, recipe):
                last = str(folder.last) if folder.last.exists() else None
                try:
                    trainer.fit(task, data, ckpt_path=last, weights_only=True)
                except Diverged as error:
                    raise Diverged(f"{error} {_what_is_kept(folder)}") from error
        if trainer.is_global_zero:
            rows = history.rows or _rows(folder)
            _finish(folder, task.to(trainer.strategy.root_device), parts, rows, time.perf_counter() - start)
    return folder


def _config(
    parts: Parts, recipe: Recipe, seed: int, about: Mapping[str, Any], machine: Machine, teachers: Teachers | None
) -> dict[str, Any]:
    shown = {"progress", "tensorboard", "checkpoint_epochs"}  # what does not change the result may change on resume
    taught = {} if teachers is None else {"teachers": [dict(member.origin) for member in teachers.members]}
    return {
        **about,
        **taught,
        "seed": seed,
        "recipe": recipe.to_dict(),
        "machine": {key: value for key, value in asdict(machine).items() if key not in shown},
        "data": {
            "dataset": parts.train.name,
            "classes": list(parts.train.classes),
            "select_on": parts.select_on,
            "test_on": parts.test_on,
            "honest": parts.honest,
            "images": {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)},
            "sha256": {
                "train": parts.train.checksum(),
                "validation": parts.validation.checksum(),
                "test": parts.test.checksum(),
            },
        },
    }


def _transform(model: nn.Module, parts: Parts, recipe: Recipe, seed: int) -> BatchTransform:
    augmentation = choose(AUGMENTATIONS, recipe.augmentation, "augmentation")
    size = picture_size(parts.train, recipe)
    if augmentation.zca_epsilon is not None and (recipe.normalize != "none" or size is not None):
        high, wide = parts.train.images.shape[-2:]
        raise InvalidOption(
            f"augmentation={recipe.augmentation!r} whitens pictures, in place of scaling them and at their own size, "
            f"here {high}x{wide}: normalize={recipe.normalize!r} with size={recipe.size} does not go with that."
        )
    if recipe.normalize == "model":
        described = getattr(model, "pretrained_cfg", None) or {}
        if "mean" not in described or "std" not in described:
            raise InvalidOption(f"normalize='model': {type(model).__name__} has no pretrained_cfg with mean and std.")
        normalize = Standardize(tuple(described["mean"]), tuple(described["std"]))
        return BatchTransform(augmentation, normalize, size=size, seed=seed)
    return make_transform(augmentation, parts.train, standardize=recipe.normalize == "train", size=size, seed=seed)


def _trainer(folder: RunFolder, recipe: Recipe, machine: Machine, history: History) -> pl.Trainer:
    def mode(metric: str) -> str:
        return "max" if metric == "val_accuracy" else "min"

    callbacks: list[Callback] = [history]
    if recipe.ema_decay:
        callbacks.append(MovingAverage(recipe.ema_decay))
    if recipe.schedule == "plateau":
        callbacks.append(Plateau(recipe))
    if recipe.patience:
        callbacks.append(
            EarlyStopping(
                recipe.stop_monitor,
                mode=mode(recipe.stop_monitor),
                patience=recipe.patience,
                check_on_train_epoch_end=True,
            )
        )
    if machine.progress:
        callbacks.append(RichProgressBar())
    saving: dict[str, Any] = {
        "dirpath": folder.best.parent,
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    # The best first: the last, from which runs resume, then knows about it.
    callbacks.append(Checkpoints(filename="best", monitor=recipe.keep, mode=mode(recipe.keep), **saving))
    callbacks.append(Checkpoints(filename="last", every_n_epochs=machine.checkpoint_epochs, **saving))
    there = torch.cuda.device_count()
    if machine.devices > there and (machine.accelerator == "gpu" or (machine.accelerator == "auto" and there)):
        raise InvalidOption(f"accelerator={machine.accelerator!r}, devices={machine.devices}: there are {there}.")
    return pl.Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        strategy="ddp" if machine.devices * machine.num_nodes > 1 else "auto",
        precision=PRECISIONS[machine.precision],  # type: ignore[arg-type]
        max_epochs=recipe.epochs,
        gradient_clip_val=recipe.clip_norm or None,
        callbacks=callbacks,
        plugins=_plugins(),
        logger=_tensorboard(folder) if machine.tensorboard else False,
        log_every_n_steps=1_000_000,  # figures are logged by epoch
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders divide the images themselves
        deterministic=machine.deterministic,
        benchmark=torch.cuda.is_available() and not machine.deterministic,
        enable_model_summary=False,
        enable_progress_bar=machine.progress,
        default_root_dir=folder.path,
    )


def _plugins() -> list[Any]:
    """Atomic checkpoints; and under SLURM none in the middle of an epoch, from which no run goes on exactly."""
    under_slurm = SLURMEnvironment.detect()
    return [AtomicCheckpoints(), *([SLURMEnvironment(auto_requeue=False)] if under_slurm else [])]


def _tensorboard(folder: RunFolder) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(folder.path, name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise MissingDependency('TensorBoard logs need tensorboard: pip install "ferattn[train]"') from error


def _stopped_early(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether the last checkpoint is that of a run which had lost its patience: it needs no further epoch."""
    if not folder.last.exists():
        return False
    state = _saved(folder.last)
    waits = [part["wait_count"] for key, part in state["callbacks"].items() if key.startswith("EarlyStopping")]
    return any(wait >= recipe.patience for wait in waits)


def _what_is_kept(folder: RunFolder) -> str:
    if folder.last.exists():
        return f"The last good checkpoint is kept: {folder.last}."
    if folder.best.exists():
        return f"The best epoch before is kept, {folder.best}, and no checkpoint to go on from."
    return "There is no checkpoint yet."


def _saved(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise InvalidInput(
            f"{path}: the checkpoint cannot be read ({type(error).__name__}); without the folder {path.parent} "
            "the run begins anew."
        ) from error
    return state


def _rows(folder: RunFolder) -> list[dict[str, float]]:
    """The history of a run that was interrupted after its last epoch."""
    found: list[dict[str, float]] = next(
        part["rows"] for part in _saved(folder.last)["callbacks"].values() if "rows" in part
    )
    return found


def _finish(
    folder: RunFolder, task: FaceClassifier, parts: Parts, rows: list[dict[str, float]], seconds: float
) -> None:
    state = _saved(folder.best)
    task.load_state_dict(state["state_dict"])
    folder.keep_weights(task.model, task.transform)
    draw_curves(rows, folder.path / "curves.png")
    same = parts.test_on == parts.select_on
    validation = _predict(
        task, parts.validation, parts.label if same else f"{parts.validation.name} {parts.select_on}"
    )
    validation.save(folder.path / f"predictions-{parts.select_on}.npz")
    test, temperature = validation, None
    if not same:
        temperature = fit_temperature(validation)
        test = _predict(task, parts.test, parts.label)
        test.save(folder.path / f"predictions-{parts.test_on}.npz")
    figures = evaluate(test, temperature=temperature)
    draw_confusion(
        figures["confusion_matrix"], test.classes, parts.label, folder.path / f"confusion-{parts.test_on}.png"
    )
    folder.write_json(
        "results.json",
        {
            "best_epoch": state["epoch"],
            "epochs": len(rows),
            "seconds": sum(row["seconds"] for row in rows),
            "seconds_of_last_call": seconds,
            "honest": parts.honest,
            "equalised_share": equalised_share(parts.train),
            "temperature": temperature,
            "validation_accuracy": float(validation.correct.mean()),
            "test": figures,
        },
    )


def _predict(task: FaceClassifier, part: CachedDataset, name: str) -> Predictions:
    """What the weights say that were kept: as whoever opens the folder computes it, in fp32 and not compiled."""
    for parameter in task.model.parameters():  # channels-last weights would choose other convolutions
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    with torch.compiler.set_stance("force_eager"):
        return predict(task.model, task.transform, part, name=name)


@contextmanager
def _fast_arithmetic(machine: Machine) -> Iterator[None]:
    """TF32 for what is left in fp32, on a GPU and unless every bit counts; the process is left as it was."""
    precision, benchmark = None, torch.backends.cudnn.benchmark
    if torch.cuda.is_available() and machine.accelerator != "cpu" and not machine.deterministic:
        # What was set by torch's newer names, fp32_precision, stands: it refuses the older then.
        with suppress(RuntimeError):
            precision = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice that does not apply, and with the process left as it was."""
    logger = logging.getLogger("lightning.pytorch")
    level, deterministic = logger.level, torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*exists and is not empty.*",
            ".*Consider setting `persistent_workers=True`.*",
            ".*GPU available but not used.*",
            ".*no logger configured.*",
            ".*You defined a `validation_step`.*",
            ".*LeafSpec.*",
            ".*treespec.*",
            ".*lr_scheduler.step\\(\\)` before `optimizer.step.*",
            ".*The dirpath has changed from.*",
            ".*smaller than the logging interval.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)
            torch.use_deterministic_algorithms(deterministic)
