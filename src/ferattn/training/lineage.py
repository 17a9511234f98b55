"""Runs that others were built on, by their weights or their answers: which, and whether they have seen a test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ferattn.data import FaceDataset
from ferattn.errors import FerattnError
from ferattn.training.parts import Parts, divide
from ferattn.training.recipe import Recipe

__all__ = ["earlier_configs", "find_seen", "images_used", "origins"]


def origins(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a run was built on: the weights it began with, then its teachers'; see ``warm_start.origin``."""
    began = [config["warm_start"]] if "warm_start" in config else []
    return [*began, *config.get("teachers", ())]


def earlier_configs(config: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """The configs of the runs that a run was built on, and of those that they were built on.

    Each is followed by its own. None stands for weights of no known run; nothing before them is known either.
    """
    found: list[dict[str, Any] | None] = []
    for origin in origins(config):
        link = origin["config"]
        found += [None] if link is None else [dict(link), *earlier_configs(link)]
    return found


def images_used(config: Mapping[str, Any], dataset: FaceDataset) -> dict[str, FaceDataset]:
    """The images on which a run was ``"trained"`` and its epoch ``"chosen"``: the dataset divided as it did, unread.

    Raises:
        InvalidOption: If the dataset cannot be divided so.
        InvalidInput: Likewise.
        UnknownChoice: Likewise.
    """
    train, validation, _, _ = divide(
        dataset.with_classes(tuple(config["data"]["classes"]), allow_missing=True),
        Recipe().changed(config["recipe"]),
        seed=config["split_seed"],
        fold=config["fold"],
        limit=config["limit"],
        subset_seed=config["seed"],
    )
    return {"trained": train, "chosen": validation}


def find_seen(parts: Parts, dataset: FaceDataset, earlier: Iterable[Mapping[str, Any] | None]) -> str | None:
    """How earlier runs have seen a run's test images, or other images of the same people; None if they have not.

    What an earlier run has seen is found by dividing the dataset once more as it did. Where that gives other numbers
    of images than the run's config names, or cannot be done, it counts as seen, and so do weights of no known run.

    Args:
        parts: The run's images.
        dataset: What they were taken from.
        earlier: Configs of runs, as of :func:`earlier_configs`; those on data of another name are passed over.
    """
    for config in earlier:
        if config is None:
            return "the run builds on weights of no known run, which may have seen its test images"
        if config["data"]["dataset"] != dataset.name:
            continue
        try:
            used = images_used(config, dataset)
            then = config["data"]["images"]
        except (FerattnError, LookupError, TypeError) as error:
            told = f"which images those have seen is unknown ({error!r})"
            return f"the run builds on weights of {dataset.name}, and {told}"
        now = {role: len(images) for role, images in used.items()}
        if now != {"trained": then["train"], "chosen": then["validation"]}:
            return (
                f"the run builds on weights of {dataset.name} as it was then: {then['train']} and "
                f"{then['validation']} images to learn from and to choose on, now "
                f"{now['trained']} and {now['chosen']}"
            )
        if parts.select_on == parts.test_on:  # the test has chosen the epoch in any case, and it is said
            del used["chosen"]
        for role, images in used.items():
            shared = _shared(parts, images)
            if shared:
                return f"the run builds on weights that were {role} on {shared}"
    return None


def _shared(parts: Parts, images: FaceDataset) -> str | None:
    test = parts.test
    same = len(set(test.ids) & set(images.ids))
    if same:
        return f"{same} of its {len(test)} test images"
    if test.subjects is None or images.subjects is None or parts.train.subjects is None:
        return None
    people = set(test.subjects)
    if people & set(parts.train.subjects):  # the run itself learns from those it tests on
        return None
    known = len(people & set(images.subjects))
    return f"images of {known} of the {len(people)} people in its test" if known else None
