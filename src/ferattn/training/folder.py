"""The folder of a run: what was asked for, what came out, and how to open it again."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ferattn.data import AUGMENTATIONS, ZCA, BatchTransform, Standardize
from ferattn.data.contrast import mostly
from ferattn.errors import InvalidInput, InvalidOption, WeightsMismatch
from ferattn.files import TEMPORARY, alone, write_atomically
from ferattn.processors import processor_name
from ferattn.training.predictions import Predictions
from ferattn.training.recipe import Recipe

__all__ = ["RunFolder", "differences", "recipe_label", "with_defaults"]

_LOCK = ".training.lock"

_AT_FIRST = ("config.json", "versions.json", "tensorboard", _LOCK)
"""What is there before the first step."""

_LONGEST = 90  # letters of a value in a message

_PACKAGES = ("ferattn", "torch", "timm", "lightning", "torchmetrics", "torchvision", "numpy", "scipy")


@dataclass(frozen=True)
class RunFolder:
    """A run's files: config, versions, metrics, curves, checkpoints, weights, predictions, results.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def last(self) -> Path:
        """The state from which a run is resumed."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The state of the best epoch."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def weights(self) -> Path:
        """The model's weights, those of the best epoch."""
        return self.path / "model.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the results are there; they are written last."""
        return (self.path / "results.json").exists()

    @property
    def config(self) -> dict[str, Any]:
        """What was asked for.

        Raises:
            InvalidInput: If this is no folder of a run.
        """
        return self._read("config.json")

    @property
    def versions(self) -> dict[str, Any]:
        """The packages and the machine with which the run began.

        Raises:
            InvalidInput: If this is no folder of a run.
        """
        return self._read("versions.json")

    @property
    def results(self) -> dict[str, Any]:
        """What came out.

        Raises:
            InvalidInput: If the run has not finished.
        """
        if not self.finished:
            raise InvalidInput(f"{self.path}: the run has not finished; the same `ferattn train` goes on with it.")
        return self._read("results.json")

    @property
    def learnt_equalised(self) -> bool | None:
        """Whether its training images were histogram-equalised; None if it was not recorded.

        Raises:
            InvalidInput: If the run has not finished.
        """
        return mostly(self.results.get("equalised_share"))

    def predictions(self, part: str) -> Predictions:
        """What the model of the best epoch said about a part."""
        return Predictions.load(self.path / f"predictions-{part}.npz")

    @contextmanager
    def claim(self, config: Mapping[str, Any], *, open_ended: bool = False) -> Iterator[None]:
        """Have the folder for one process that trains: the config is written, or compared with the run's.

        A run that has finished is only compared. What a killed process left unfinished is cleared away.

        Args:
            config: What is asked for.
            open_ended: The number of epochs may be another one than the run began with, but not less than it has
                behind it. A warning says so, and the versions keep the earlier number.

        Raises:
            InvalidOption: If another process trains there, the run began with another config (names what differs), or
                the folder holds something else.
        """
        wanted = json.loads(json.dumps(config))
        self._has_begun(wanted, open_ended)  # before anything is touched
        if self.finished:
            yield
            return
        with alone(self.path, _LOCK):
            if not self._has_begun(wanted, open_ended):  # again: another process may have been quicker
                self.write_json("versions.json", _versions())
                self.write_json("config.json", wanted)
            elif _epochs(self.config) != _epochs(wanted):
                self._take_over_epochs(wanted)
            yield

    def _take_over_epochs(self, wanted: Mapping[str, Any]) -> None:
        """Write the config with another number of epochs; the earlier one is kept, and a warning says so."""
        versions, before = self.versions, _epochs(self.config)
        known = versions.get("epochs_before", [])
        if known[-1:] != [before]:  # a kill may have come before the config had the new number
            self.write_json("versions.json", versions | {"epochs_before": [*known, before]})
        self.write_json("config.json", wanted)
        warnings.warn(f"{self.path}: epochs={_epochs(wanted)} in place of {before}.", stacklevel=2)

    def _has_begun(self, wanted: Mapping[str, Any], open_ended: bool) -> bool:
        """Whether there is more than a mistake before the first step, or a kill there, leaves; makes the folder."""
        try:
            begun = self.path.exists() and any(
                file.name not in _AT_FIRST and file.suffix != TEMPORARY for file in self.path.iterdir()
            )
            if begun and not (self.path / "config.json").exists():
                raise InvalidOption(f"{self.path}: not empty and not a run; give another --out.")
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidOption(f"{self.path}: no folder can be made there ({error.strerror or error}).") from error
        changed = differences(with_defaults(self.config), with_defaults(wanted)) if begun else []
        epochs = [line for line in changed if line.startswith("recipe.epochs ")]
        if changed == epochs != []:
            self._may_end_elsewhere(wanted, epochs[0], open_ended)
        elif changed:
            raise InvalidOption(
                f"{self.path}: the run began with another config; {'; '.join(changed)}. Give another --out, or "
                "the same options to go on."
            )
        return begun

    def _may_end_elsewhere(self, wanted: Mapping[str, Any], change: str, open_ended: bool) -> None:
        """Refuse another number of epochs for a run that was tested, is planned by it, or has more behind it."""
        if self.finished:
            raise InvalidOption(
                f"{self.path}: {change}, and the run has finished and was tested. Give another --out; "
                "--warm-start begins a new run with its weights."
            )
        if not open_ended:
            raise InvalidOption(
                f"{self.path}: {change}, and its recipe depends on how many there are (schedule 'cosine' or "
                "'one-cycle', or mix_off_epochs). Give another --out, or the same options to go on."
            )
        metrics, behind = self.path / "metrics.csv", 0
        if self.last.exists() and metrics.exists():  # without a checkpoint it begins anew
            behind = len(metrics.read_text(encoding="utf-8").splitlines()) - 1
        if _epochs(wanted) < behind:
            raise InvalidOption(f"{self.path}: {change}, and the run has {behind} epochs behind it.")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, completely or not at all."""
        write_atomically(self.path / name, (json.dumps(content, indent=1) + "\n").encode())

    def keep_weights(self, model: nn.Module, transform: BatchTransform) -> None:
        """Write the model's weights, and the statistics of its images, as safetensors."""
        from safetensors.torch import save

        weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        write_atomically(self.weights, save(weights))
        normalize = transform.normalize
        about: dict[str, Any] = {"kind": "none", "size": None if transform.size is None else list(transform.size)}
        if isinstance(normalize, Standardize):
            about |= {"kind": "standardize", "mean": list(normalize.mean), "std": list(normalize.std)}
        elif isinstance(normalize, ZCA):
            about |= {"kind": "zca", "shape": list(normalize.shape), "epsilon": normalize.epsilon}
            state = {key: value.cpu().contiguous() for key, value in normalize.state_dict().items()}
            write_atomically(self.path / "normalize.safetensors", save(state))
        self.write_json("transform.json", about)

    def load_weights(self, model: nn.Module) -> None:
        """Put the weights of the best epoch into a model of the same build.

        Raises:
            InvalidInput: If there are none, or the file is damaged.
            WeightsMismatch: If they do not fit.
        """
        try:
            model.load_state_dict(self._tensors("model.safetensors"))
        except RuntimeError as error:
            told = " ".join(str(error).split())
            raise WeightsMismatch(f"{self.path}: the weights do not fit: {told[:300]}") from error

    def load_transform(self) -> BatchTransform:
        """How the model wants its images, without augmentation.

        Raises:
            InvalidInput: If the run has not finished, or a file is damaged.
        """
        about = self._read("transform.json")
        normalize: nn.Module | None = None
        try:
            if about["kind"] == "standardize":
                normalize = Standardize(tuple(about["mean"]), tuple(about["std"]))
            elif about["kind"] == "zca":
                channels, height, width = about["shape"]
                normalize = ZCA((channels, height, width), about["epsilon"])
                normalize.load_state_dict(self._tensors("normalize.safetensors"))
            size = None if about["size"] is None else (about["size"][0], about["size"][1])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InvalidInput(f"{self.path / 'transform.json'}: damaged ({error}).") from error
        return BatchTransform(AUGMENTATIONS["none"], normalize, size=size).eval()

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path / name
        try:
            tensors: dict[str, torch.Tensor] = load(path.read_bytes())
        except OSError as error:
            raise InvalidInput(
                f"{path}: cannot be read ({error.strerror or error}). Has the run finished?"
            ) from error
        except SafetensorError as error:
            raise InvalidInput(f"{path}: damaged ({error}).") from error
        return tensors

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInput(
                f"{path}: cannot be read ({error.strerror or error}). Is it the folder of a run that has finished?"
            ) from error
        except ValueError as error:
            raise InvalidInput(f"{path}: damaged ({error}).") from error
        if not isinstance(content, dict):
            raise InvalidInput(f"{path}: damaged (no table).")
        return content


def differences(was: Any, now: Any, at: str = "") -> list[str]:
    """Each entry that differs between two configs, by its path.

    >>> differences({"recipe": {"lr": 0.1}, "seed": 0}, {"recipe": {"lr": 0.2}, "seed": 0})
    ['recipe.lr was 0.1, now 0.2']
    """
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [*was, *(key for key in now if key not in was)]
        return [
            line
            for key in keys
            for line in differences(was.get(key), now.get(key), f"{at}.{key}" if at else str(key))
        ]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return [
            line for row, pair in enumerate(zip(was, now, strict=True)) for line in differences(*pair, f"{at}.{row}")
        ]
    return [] if was == now else [f"{at} was {_short(was)}, now {_short(now)}"]


def _epochs(config: Mapping[str, Any]) -> int:
    return int(config["recipe"]["epochs"])


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."


def with_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's config, with settings that recipes did not have when it began: they change nothing that it does."""
    if isinstance(config.get("recipe_name"), str):
        config = {**config, "recipe_name": recipe_label(config["recipe_name"])}
    known = {field.name for field in fields(Recipe)}
    settings = config.get("recipe")
    if not isinstance(settings, dict) or not settings.keys() < known:
        return config
    return {**config, "recipe": {**Recipe().to_dict(), **settings}}


def recipe_label(name: str) -> str:
    """What a recipe is called in comparisons: its name, or that of its file, wherever the file lies.

    >>> recipe_label("luo2023"), recipe_label("mine/own.toml")
    ('luo2023', 'own.toml')
    """
    return Path(name).name if name.endswith(".toml") else name


def _versions() -> dict[str, Any]:
    versions: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    versions["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    versions["threads"] = torch.get_num_threads()
    return versions
