"""``ferattn ship``: from a finished run to a folder of weights that can be given away, with a card."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from ferattn.data import BatchTransform, FaceDataset
    from ferattn.training import Parts, Predictions, Recipe

__all__ = ["KINDS", "ship"]

KINDS = {"FER2013": "fer2013", "CK+": "ckplus", "JAFFE": "jaffe"}
"""Kinds of datasets by the name that a run's config has; every other is a folder."""


def ship(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; local-dir:OUT opens it in timm.")],
    data: Annotated[Path, typer.Option(help="The images that the run was trained and tested on.")],
    split: Annotated[list[str] | None, typer.Option(help="An official part to report too, such as private.")] = None,
    tag: Annotated[str | None, typer.Option(help="What to call the weights; else <recipe>_<dataset>.")] = None,
    terms: Annotated[
        str | None, typer.Option(help="What the makers of the data allow; known for the papers'.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 256,
) -> None:
    """Half-precision weights, a config for timm, a model card, curves: checked against the run's predictions.

    The weights that come with ferattn lie in src/ferattn/pretrained, one such folder for each model.
    """
    from dataclasses import asdict

    from ferattn import create_model, register
    from ferattn.cli.evaluate import open_trained
    from ferattn.data import equalised_share, open_dataset
    from ferattn.errors import InvalidOption
    from ferattn.spec import architecture_name
    from ferattn.training import Recipe, RunFolder
    from ferattn.training.card import make_card
    from ferattn.training.lineage import find_seen
    from ferattn.training.shipping import compare_rounded, halve, read_curves, write_shipment

    finished = RunFolder(run)
    results, config = finished.results, finished.config
    network, transform, classes = open_trained(finished, None)
    name, recipe = str(config["model"]), Recipe().changed(config["recipe"])
    dataset = open_dataset(data, KINDS.get(config["data"]["dataset"]))
    chain = [config, *_earlier(config)]
    allowed = _terms([link["data"]["dataset"] for link in chain], terms)
    parts = _parts(config, dataset, classes)
    seen = find_seen(parts, dataset, chain[1:])
    if seen is not None:
        raise InvalidOption(f"{seen}.")
    saved = finished.predictions(parts.test_on)
    before = _predict(network, transform, parts.test, parts.label, "none", batch_size)
    compare_rounded(saved, before, f"{run}: its weights")
    options = _options(network, recipe)
    plain: Any = create_model(
        name, num_classes=len(classes), in_chans=recipe.channels, img_size=recipe.size, **options
    ).eval()
    weights, folded = _as_built_by_name(network, plain, name)
    halved = halve(weights)
    plain.load_state_dict(halved)
    after = _predict(plain, transform, parts.test, parts.label, "none", batch_size)
    rounding = compare_rounded(saved, after, "the rounded weights")
    figures = {config["data"]["test_on"]: {"none": _figures(after, results["temperature"])}}
    for part in split or []:
        if part in figures:
            raise InvalidOption(f"--split {part}: reported anyway, as the run's test.")
        figures[part] = _by_views(plain, transform, _unseen(dataset, part, chain, classes), part, recipe, results)
    about = _description(plain, transform, name, tag or _tag(config))
    facts = {
        "architecture": register(architecture_name(name)),  # as timm knows it
        "num_classes": len(classes),
        "num_features": plain.num_features,
        "label_names": list(classes),
        "pretrained_cfg": about,
        "model_args": options,
        "ferattn": {
            "parameters": sum(parameter.numel() for parameter in plain.parameters()),
            "config": config,
            "versions": finished.versions,
            "best_epoch": results["best_epoch"],
            "epochs": results["epochs"],
            "seconds": results["seconds"],
            "temperature": results["temperature"],
            "norms_folded": folded,
            "rounding": asdict(rounding),
            "figures": figures,
            "equalised_share": equalised_share(parts.train),
            "subjects": None if dataset.subjects is None else len(set(dataset.subjects)),
            "validation_from_train": bool(recipe.validation_fraction),
            "terms": allowed,
            "commands": [*_train_commands(config), _ship_command(name, split, tag, terms)],
        },
    }
    write_shipment(out, halved, facts, make_card(facts), read_curves(run / "curves.png"))
    size = (out / "model.safetensors").stat().st_size
    Console(soft_wrap=True, highlight=False).print(
        f"{out}: {name}.{about['tag']}, {size / 1e6:.2f} MB; {rounding.answers_changed} of {rounding.images} "
        f"answers changed by rounding, accuracy {rounding.accuracy_before:.2%} before and "
        f"{rounding.accuracy_after:.2%} after",
        markup=False,
    )


def _terms(datasets: list[str], terms: str | None) -> str:
    """What may be done with weights that learnt from these, the run's own first; what is known is always said."""
    from ferattn.errors import InvalidOption
    from ferattn.training.card import DATA_TERMS

    first, *others = dict.fromkeys(datasets)
    for dataset in (first, *others):
        if terms is None and dataset not in DATA_TERMS:
            raise InvalidOption(
                f"--terms: what the makers of {dataset} allow is not known here; say it in a sentence."
            )
    own = DATA_TERMS[first] if terms is None else terms
    return " ".join([own, *(DATA_TERMS[dataset] for dataset in others if dataset in DATA_TERMS)])


def _predict(
    network: nn.Module, transform: BatchTransform, images: FaceDataset, name: str, kind: str, batch_size: int
) -> Predictions:
    import torch

    from ferattn.training import predict

    network.to("cuda" if torch.cuda.is_available() else "cpu")
    return predict(network, transform, images, name=name, kind=kind, batch_size=batch_size)


def _figures(predictions: Predictions, temperature: float | None) -> dict[str, Any]:
    from ferattn.training import evaluate

    return evaluate(predictions, temperature=temperature)


def _by_views(
    network: nn.Module,
    transform: BatchTransform,
    images: FaceDataset,
    part: str,
    recipe: Recipe,
    results: dict[str, Any],
) -> dict[str, Any]:
    """One part's figures, without test-time views and with each kind of them."""
    from ferattn.data import VIEWS
    from ferattn.training import store

    stored = store(images, recipe.size, recipe.channels)
    return {
        kind: _figures(
            _predict(network, transform, stored, f"{images.name} {part}", kind, 256),
            results["temperature"] if kind == "none" else None,
        )
        for kind in VIEWS
    }


def _earlier(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The configs of the runs that a run was built on, all of them known."""
    from ferattn.errors import InvalidOption
    from ferattn.training.lineage import earlier_configs

    found = earlier_configs(config)
    known = [link for link in found if link is not None]
    if len(known) < len(found):
        raise InvalidOption("the run builds on weights from a file, and what those learnt from is not known.")
    return known


def _parts(config: dict[str, Any], dataset: FaceDataset, classes: tuple[str, ...]) -> Parts:
    """The images of a run, divided as it divided them."""
    from ferattn.training import Recipe, make_parts

    return make_parts(
        dataset.with_classes(classes, allow_missing=True),
        Recipe().changed(config["recipe"]),
        seed=config["split_seed"],
        fold=config["fold"],
        limit=config["limit"],
        subset_seed=config["seed"],
    )


def _unseen(dataset: FaceDataset, part: str, chain: list[dict[str, Any]], classes: tuple[str, ...]) -> FaceDataset:
    """An official part, none of which was trained or chosen on, in the run itself or one that it began with."""
    from ferattn.errors import InvalidOption
    from ferattn.training.lineage import images_known, images_used

    images = dataset.part(part).with_classes(classes, allow_missing=True)
    for number, link in enumerate(chain):
        same = link["data"]["dataset"] == chain[0]["data"]["dataset"]
        for role, used in (images_used if same else images_known)(link, dataset).items():
            shared = len(set(images.ids) & set(used.ids))
            if shared:
                who = "a run that it builds on" if number else "the run"
                raise InvalidOption(f"--split {part}: {who} was {role} on {shared} of its {len(images)} images.")
    return images


def _options(network: Any, recipe: Recipe) -> dict[str, Any]:
    """What create_model has to be told beside the name; timm passes it on when it opens the folder."""
    from ferattn.backbones import has_stem

    options = {"stem": recipe.stem} if has_stem(network.spec.backbone) and recipe.stem != "own" else {}
    if recipe.placement != "own" and network.spec.attention is not None:
        options["placement"] = recipe.placement
    return options


def _as_built_by_name(network: nn.Module, plain: nn.Module, name: str) -> tuple[dict[str, Tensor], int]:
    """The weights as ``create_model(name)`` wants them, and how many norms it does not build were folded away."""
    from copy import deepcopy

    from ferattn.errors import WeightsMismatch
    from ferattn.folding import fold_norms

    folded = 0
    if network.state_dict().keys() != plain.state_dict().keys():
        network = deepcopy(network).eval()
        folded = fold_norms(network)
    if network.state_dict().keys() != plain.state_dict().keys():
        raise WeightsMismatch(f"the run's {name} has other parts than create_model({name!r}) builds.")
    return network.state_dict(), folded


def _description(plain: Any, transform: BatchTransform, name: str, tag: str) -> dict[str, Any]:
    from torch import nn

    from ferattn.data import Standardize
    from ferattn.errors import InvalidOption

    channels, height, width = plain.pretrained_cfg["input_size"]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if isinstance(transform.normalize, Standardize):
        mean, std = transform.normalize.mean, transform.normalize.std
    elif not isinstance(transform.normalize, nn.Identity):
        raise InvalidOption(f"{name}: a config for timm has mean and std, no {type(transform.normalize).__name__}.")
    return {
        "tag": tag,
        "custom_load": False,
        "input_size": [channels, height, width],
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": list(mean) * (channels // len(mean)),
        "std": list(std) * (channels // len(std)),
        "num_classes": plain.num_classes,
        "pool_size": None,
        "first_conv": plain.pretrained_cfg["first_conv"],
        "classifier": plain.pretrained_cfg["classifier"],
        "license": "research-only",
    }


def _tag(config: dict[str, Any]) -> str:
    recipe = Path(config["recipe_name"]).stem
    variant = f"_{config['variant']}" if config["variant"] else ""
    dataset = "".join(letter for letter in config["data"]["dataset"].lower() if letter.isalnum())
    return f"{recipe}{variant}_{dataset}".replace(".", "-")


def _train_commands(config: dict[str, Any]) -> list[str]:
    """What has to be typed to train the same again, from random weights on: the runs it was built on come first."""
    from ferattn.training.lineage import began_with

    data = {config["data"]["dataset"]: "DATA"}
    commands: list[str] = []
    # Of each run that was typed: config, folder, data, and the checksum of its weights if an origin told it.
    runs: list[tuple[dict[str, Any], str, str, set[str]]] = []

    def again(link: dict[str, Any], digest: str | None = None) -> tuple[str, str]:
        """Type a run, once, after all that it needs; its folder and its data. Other weights are of another run."""
        for typed, folder, where, digests in runs:
            if typed == link and (digest is None or digests <= {digest}):
                digests |= set() if digest is None else {digest}
                return folder, where
        begin = [weights(began, "{}/model.safetensors") for began in began_with(link)]
        teachers = [weights(teacher, "local-dir:{}") for teacher in link.get("teachers", ())]
        number = len(runs) + 1
        where = data.setdefault(link["data"]["dataset"], f"DATA{number}")
        folder = "RUN" if link is config else f"RUN{number}"
        runs.append((link, folder, where, set() if digest is None else {digest}))
        commands.append(_train_command(link, where, folder, begin, teachers))
        return folder, where

    def weights(origin: Mapping[str, Any], form: str) -> str:
        """Type the run that weights come from, and how they were given away if they were; what to call them."""
        run, where = again(origin["config"], None if origin.get("given_away") else origin["sha256"])
        if not origin.get("given_away"):
            return run
        folder = run.replace("RUN", "WEIGHTS")
        command = f"ferattn ship {run} {folder} --data {where}"
        commands.extend([] if command in commands else [command])
        return form.format(folder)

    again(config)
    return commands


def _train_command(config: dict[str, Any], where: str, out: str, begin: list[str], teachers: list[str]) -> str:
    from dataclasses import fields

    from ferattn.training import Recipe, load_recipe

    recipe = Recipe().changed(config["recipe"])
    name, data, machine = config["recipe_name"], config["data"], config["machine"]
    written = load_recipe(name, KINDS.get(data["dataset"], "folder"), config["variant"])
    words: list[Any] = ["ferattn", "train", "--recipe", name]
    words += ["--variant", config["variant"]] if config["variant"] else []
    words += ["--model", config["model"], "--data", where, "--out", out, "--seed", config["seed"]]
    words += [word for run in begin for word in ("--warm-start", run)]
    words += [word for teacher in teachers for word in ("--teacher", teacher)]
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if value != getattr(written, field.name):
            shown = (
                str(value).lower() if isinstance(value, bool) else list(value) if isinstance(value, tuple) else value
            )
            words += ["--set", f"{field.name}={shown}"]
    for option in ("split_seed", "fold", "limit"):
        words += [f"--{option.replace('_', '-')}", config[option]] if config[option] else []
    defaults = {"accelerator": "auto", "devices": 1, "num_nodes": 1, "precision": "fp32"}
    for option, default in defaults.items():
        words += [f"--{option.replace('_', '-')}", machine[option]] if machine[option] != default else []
    words += [
        f"--{option.replace('_', '-')}" for option in ("compile", "channels_last", "deterministic") if machine[option]
    ]
    return shlex.join(str(word) for word in words)


def _ship_command(name: str, split: list[str] | None, tag: str | None, terms: str | None) -> str:
    words = ["ferattn", "ship", "RUN", f"src/ferattn/pretrained/{name}", "--data", "DATA"]
    words += [word for part in split or [] for word in ("--split", part)]
    words += ["--tag", tag] if tag else []
    words += ["--terms", terms] if terms else []
    return shlex.join(words)
