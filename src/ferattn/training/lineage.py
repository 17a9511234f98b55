"""Runs that others were built on, by their weights or their answers: which, and whether they have seen a test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ferattn.data import FaceDataset
from ferattn.errors import FerattnError
from ferattn.training.parts import Parts, divide
from ferattn.training.recipe import Recipe

__all__ = ["began_with", "earlier_configs", "find_seen", "images_known", "images_used", "origins", "parts_of"]


def origins(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a run was built on: the weights it began with, then its teachers'; see ``warm_start.origin``."""
    return [*began_with(config), *config.get("teachers", ())]


def began_with(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The weights that a run began with: none where they were random, several where it was their mean."""
    began = config.get("warm_start", [])
    return began if isinstance(began, list) else [began]


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
    train, validation, _ = parts_of(config, dataset)
    return {"trained": train, "chosen": validation}


def parts_of(config: Mapping[str, Any], dataset: FaceDataset) -> tuple[FaceDataset, FaceDataset, FaceDataset]:
    """The training, selection and test images of a run: the dataset divided as it did, unread.

    Raises:
        InvalidOption: If the dataset cannot be divided so.
        InvalidInput: Likewise.
        UnknownChoice: Likewise.
    """
    train, validation, test, _ = divide(
        dataset.with_classes(tuple(config["data"]["classes"]), allow_missing=True),
        Recipe().changed(config["recipe"]),
        seed=config["split_seed"],
        fold=config["fold"],
        limit=config["limit"],
        subset_seed=config["seed"],
    )
    return train, validation, test


def images_known(config: Mapping[str, Any], dataset: FaceDataset) -> dict[str, FaceDataset]:
    """What :func:`images_used` gives where the dataset, under any name, is what a run learnt from; else nothing.

    It is where the run's training images, as it divides, have the same names, classes and contents as then.

    Args:
        config: The run's.
        dataset: All of it.
    """
    try:
        used = images_used(config, dataset)
        if _counts(used) == _counts_then(config) and used["trained"].checksum() == config["data"]["sha256"]["train"]:
            return used
    except (FerattnError, LookupError, TypeError):
        pass
    return {}


def find_seen(parts: Parts, dataset: FaceDataset, earlier: Iterable[Mapping[str, Any] | None]) -> str | None:
    """How earlier runs have seen a run's test images, or other images of the same people; None if they have not.

    What an earlier run has seen is found by dividing the dataset once more as it did. Where that gives other numbers
    of images than the run's config names, or cannot be done, it counts as seen, and so do weights of no known run.

    Args:
        parts: The run's images.
        dataset: What they were taken from.
        earlier: Configs of runs, as of :func:`earlier_configs`; those on data of another name are passed over, unless
            what they learnt from is this data under that name.
    """
    for config in earlier:
        if config is None:
            return "the run builds on weights of no known run, which may have seen its test images"
        if config["data"]["dataset"] != dataset.name:
            used = images_known(config, dataset)
        else:
            try:
                used, then = images_used(config, dataset), _counts_then(config)
            except (FerattnError, LookupError, TypeError) as error:
                told = f"which images those have seen is unknown ({error!r})"
                return f"the run builds on weights of {dataset.name}, and {told}"
            now = _counts(used)
            if now != then:
                return (
                    f"the run builds on weights of {dataset.name} as it was then: {then['trained']} and "
                    f"{then['chosen']} images to learn from and to choose on, now "
                    f"{now['trained']} and {now['chosen']}"
                )
        if parts.select_on == parts.test_on:  # the test has chosen the epoch in any case, and it is said
            used.pop("chosen", None)
        for role, images in used.items():
            shared = _shared(parts, images)
            if shared:
                return f"the run builds on weights that were {role} on {shared}"
    return None


def _counts(used: Mapping[str, FaceDataset]) -> dict[str, int]:
    return {role: len(images) for role, images in used.items()}


def _counts_then(config: Mapping[str, Any]) -> dict[str, int]:
    then = config["data"]["images"]
    return {"trained": then["train"], "chosen": then["validation"]}


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
