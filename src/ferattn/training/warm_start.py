"""Begin with the weights of an earlier run instead of random ones: what was learnt on FER2013 goes on to CK+.

Or with the mean of several runs' weights, a model soup (Wortsman et al. 2022, arXiv 2203.05482).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ferattn.data import Standardize
from ferattn.errors import InvalidInput, InvalidOption, WeightsMismatch
from ferattn.training.folder import RunFolder
from ferattn.weights import LoadReport, fit_own_weights

__all__ = ["distinct", "normalization", "origin", "warm_start", "weights_file"]


def weights_file(path: Path) -> Path:
    """The safetensors file of a finished run, or the one that was named.

    Raises:
        InvalidOption: If there is none, or the folder is not that of a finished run.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InvalidOption(f"{path}: no weights there; the folder of a finished run, or a .safetensors file.")
    if not path.is_dir():
        return file
    if "data" not in _config_beside(path):
        raise InvalidOption(
            f"{path}: not the folder of a run. Options: the run that the weights were made from, or {file}."
        )
    if not RunFolder(path).finished:
        raise InvalidOption(f"{path}: the run has not finished; the same `ferattn train` goes on with it.")
    return file


def origin(path: Path) -> dict[str, Any]:
    """What a later run keeps of the weights it began with.

    Their SHA-256, the config of their run if one is known, and whether they are that run's weights as they were given
    away, in half precision.
    """
    config = _config_beside(path)
    given_away = "data" not in config
    if given_away:
        config = config.get("ferattn", {}).get("config", {})
    return {
        "sha256": _sha256(weights_file(path)),
        "config": config or None,
        "given_away": given_away and bool(config),
    }


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _config_beside(path: Path) -> dict[str, Any]:
    """The config beside weights, that of their run or of weights to give away; empty where there is none of ours."""
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.name != "model.safetensors":
        return {}
    try:
        config = RunFolder(folder).config
    except InvalidInput:
        return {}
    if _is_of_a_run(config):
        return config
    made = config.get("ferattn")
    ours = isinstance(made, dict) and _is_of_a_run(made.get("config")) and isinstance(config.get("label_names"), list)
    # Other weights that somebody put there are not what the config tells of.
    return config if ours and config.get("sha256") == _sha256(folder / "model.safetensors") else {}


def _is_of_a_run(config: Any) -> bool:
    data = config.get("data") if isinstance(config, dict) else None
    return isinstance(data, dict) and {"classes", "dataset"} <= data.keys()


def _classes(path: Path) -> tuple[str, ...] | None:
    config = _config_beside(path)
    classes = config["data"]["classes"] if "data" in config else config.get("label_names")
    return None if classes is None else tuple(classes)


def normalization(path: Path) -> dict[str, tuple[float, ...]] | None:
    """Mean and standard deviation with which a run's weights saw their images; None where no run says them.

    Raises:
        InvalidInput: If the run has not finished.
    """
    config = _config_beside(path)
    if "pretrained_cfg" in config:
        return {name: tuple(config["pretrained_cfg"][name]) for name in ("mean", "std")}
    if not config:
        return None
    normalize = RunFolder(path if path.is_dir() else path.parent).load_transform().normalize
    if isinstance(normalize, Standardize):
        return {"mean": normalize.mean, "std": normalize.std}
    return {"mean": (0.0,), "std": (1.0,)} if isinstance(normalize, nn.Identity) else None


def warm_start(model: Any, path: Path | Sequence[Path], classes: tuple[str, ...]) -> LoadReport:
    """Put the weights of an earlier run, or the mean of several runs' weights, into a model of the same architecture.

    The classifier is taken over only where it has the same number of classes and, as far as a config beside the
    weights says which ones, the same classes in the same order; else it stays random. A fully connected head for
    pictures of another size is fitted to the model's.

    The mean of several is meant for runs that were trained from the same weights on; others may have no useful mean.
    The statistics of batch norms are averaged like weights, which is not what the mean network sees: until training
    has brought them up to date, its answers may be worse than those of any of its parts.

    Args:
        model: A model of :func:`ferattn.create_model`; its weights are replaced.
        path: The folder of a finished run, or a ``.safetensors`` file; or several.
        classes: The model's classes, in order.

    Returns:
        What was loaded, and what is new.

    Raises:
        InvalidOption: If there are no weights, or the same twice.
        InvalidInput: If a file is damaged.
        WeightsMismatch: If they are another model's weights.

    Source: of the mean, Wortsman et al. 2022, arXiv 2203.05482, a uniform soup.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    if not paths:
        raise InvalidOption("warm_start: at least one run, or file of weights.")
    if len(paths) > 1:
        distinct(paths)
    own = model.state_dict()
    loaded = [_fitted(model, one, classes) for one in paths]
    adapted = tuple(dict.fromkeys(key for _, keys, _ in loaded for key in keys))
    new = tuple(dict.fromkeys(key for _, _, keys in loaded for key in keys))
    means = _mean([weights for weights, _, _ in loaded]) | {key: own[key] for key in new}
    model.load_state_dict(means)
    source = " and ".join(map(str, paths)) + (f", the mean of {len(paths)}" if len(paths) > 1 else "")
    return LoadReport(source, tuple(key for key in own if key not in new), adapted, new)


def distinct(paths: Sequence[Path]) -> list[Path]:
    """Runs or files of weights in an order of their own, that of their checksums: in which they are named is chance.

    Raises:
        InvalidOption: If two are the same, or one is missing.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        digest = _sha256(weights_file(path))
        if digest in seen:
            raise InvalidOption(f"{path}: the same weights as {seen[digest]}; a mean is one of different weights.")
        seen[digest] = path
    return [seen[digest] for digest in sorted(seen)]


def _mean(weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of each tensor, in its own precision; whole numbers, such as a norm's count of batches, are the first's."""
    first = weights[0]
    return {
        key: torch.stack([one[key].double() for one in weights]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in first.items()
    }


def _fitted(
    model: Any, path: Path, classes: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """A file's weights as the model takes them; keys of those made to fit, and of those that stay the model's own."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    file = weights_file(path)
    try:
        weights = load(file.read_bytes())
    except SafetensorError as error:
        raise InvalidInput(f"{file}: damaged ({error}).") from error
    adapted: list[str] = []
    try:
        fitted = fit_own_weights(weights, model, adapted=adapted)
    except WeightsMismatch as error:
        raise WeightsMismatch(f"{file}: {error}") from error
    own = model.state_dict()
    for key in adapted:
        if fitted[key].shape != own[key].shape:
            raise InvalidOption(
                f"{file}: {key} reads pictures of {fitted[key].shape[1]} channels, the model {own[key].shape[1]}."
            )
    learnt = _classes(path)
    head = [key for key in own if key.startswith(f"{model.pretrained_cfg['classifier']}.")]
    if learnt not in (None, classes) or any(key not in fitted or fitted[key].shape != own[key].shape for key in head):
        return fitted | {key: own[key] for key in head}, tuple(adapted), tuple(head)
    return fitted, tuple(adapted), ()
