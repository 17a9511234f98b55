"""From one dataset to the parts of a run: training, selection and test images, all in memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferattn.data import CachedDataset, FaceDataset, cache, make_splits, random_split, subject_kfold
from ferattn.errors import InvalidInput, InvalidOption, choose
from ferattn.training.predictions import NOT_HONEST
from ferattn.training.recipe import Recipe

__all__ = ["Parts", "divide", "first_images", "make_parts", "own_division", "picture_size", "store"]


@dataclass(frozen=True, eq=False)
class Parts:
    """The images of one run.

    Attributes:
        train: What is learnt from.
        validation: What the best epoch is chosen on.
        test: What is reported.
        select_on: The name of ``validation``.
        test_on: The name of ``test``.
        honest: False where one person may be on both sides, where ``validation`` is ``test``, or where the weights
            that the run began with have seen the test.
    """

    train: CachedDataset
    validation: CachedDataset
    test: CachedDataset
    select_on: str
    test_on: str
    honest: bool

    @property
    def label(self) -> str:
        """Which test this is, for reports."""
        return f"{self.test.name} {self.test_on}" + ("" if self.honest else NOT_HONEST)


def make_parts(
    dataset: FaceDataset,
    recipe: Recipe,
    *,
    seed: int = 0,
    fold: int = 0,
    limit: int | None = None,
    subset_seed: int = 0,
    asked: Collection[str] = (),
) -> Parts:
    """Divide a dataset as a recipe says, and read the images into memory.

    Args:
        dataset: All of it.
        recipe: For ``split``, ``select_on``, ``test_on``, ``validation_fraction``, ``train_fraction``, ``size`` and
            ``channels``.
        seed: Of random divisions; keep it when only the training seed changes, so that tests stay paired.
        fold: Which fold, where the division has several.
        limit: At most so many images in each part, all classes in turn: for a smoke run.
        subset_seed: Which training images make up a ``train_fraction`` below 1.
        asked: Settings that somebody asked for, and that no recipe of the package brought along: with
            ``"validation_fraction"`` among them, one that would set nothing aside is refused.

    Raises:
        InvalidOption: If the division has no such fold or lacks a part, or what was asked for changes nothing.
        InvalidInput: If a class has no training images, or there is only one.
    """
    train, validation, test, honest = divide(
        dataset, recipe, seed=seed, fold=fold, limit=limit, subset_seed=subset_seed, asked=asked
    )
    stored = [store(part, recipe.size, recipe.channels) for part in (train, validation, test)]
    return Parts(stored[0], stored[1], stored[2], recipe.select_on, recipe.test_on, honest)


def divide(
    dataset: FaceDataset,
    recipe: Recipe,
    *,
    seed: int,
    fold: int,
    limit: int | None,
    subset_seed: int,
    asked: Collection[str] = (),
) -> tuple[FaceDataset, FaceDataset, FaceDataset, bool]:
    """The training, selection and test images of :func:`make_parts` before any is read, and whether it is honest."""
    if len(dataset.classes) < 2:
        raise InvalidInput(f"{dataset.name}: images of {', '.join(dataset.classes)} only; two classes at least.")
    splits = make_splits(recipe.split, dataset, seed)
    parts = splits.apply(dataset, fold)
    # FER2013's merged test leaves no test image to choose on; images set aside from the training set do.
    set_aside = splits.scheme == "merged-test" and recipe.select_on not in parts
    honest = (splits.honest or set_aside) and recipe.select_on != recipe.test_on
    train = choose(parts, "train", f"part of {recipe.split}")
    if recipe.validation_fraction and recipe.select_on in parts and "validation_fraction" in asked:
        free = next(name for name in ("validation", "held-out", "held-out-2") if name not in parts)
        raise InvalidOption(
            f"validation_fraction={recipe.validation_fraction:g} would change nothing: the best epoch is chosen on "
            f"select_on={recipe.select_on!r}, a part of the split {recipe.split!r}. Set select_on={free!r} to choose "
            "it on that share of the training images, or validation_fraction=0."
        )
    if recipe.validation_fraction and recipe.select_on not in parts:
        rows = _held_out(train, recipe.validation_fraction, seed, by_subject=splits.honest)
        parts[recipe.select_on] = train.subset(rows)
        train = train.subset(np.setdiff1d(np.arange(len(train)), rows))
    if recipe.select_on not in parts:
        raise InvalidOption(
            f"select_on={recipe.select_on!r}: the split {recipe.split!r} has {', '.join(parts)}; name one of them, "
            "or set validation_fraction to take some of the training images."
        )
    if recipe.train_fraction < 1:
        train = train.subset(_nested(train, recipe.train_fraction, subset_seed))
    validation, test = parts[recipe.select_on], choose(parts, recipe.test_on, f"part of {recipe.split}")
    if limit is not None:
        train, validation, test = (part.subset(first_images(part, limit)) for part in (train, validation, test))
    empty = [name for name, count in train.counts().items() if not count]
    if empty:
        raise InvalidInput(f"{dataset.name}: no training images of {', '.join(empty)}.")
    return train, validation, test, honest


def own_division(recipe: Recipe, dataset: FaceDataset) -> Recipe:
    """The recipe with the division that a folder of images has, where it has one with training and test images.

    A tenth of the training images is set aside where the folder has nothing to choose the epoch on.

    Args:
        recipe: What the division would be.
        dataset: The folder's images.
    """
    parts = dataset.parts or ()
    if not {"train", "test"} <= set(parts):
        return recipe
    lacking = recipe.select_on not in parts and not recipe.validation_fraction
    return recipe.changed({"split": "official"} | ({"validation_fraction": 0.1} if lacking else {}))


def store(dataset: FaceDataset, size: int, channels: int) -> CachedDataset:
    """Read images into memory, at the size at which they are trained on and tested.

    FER2013's 48 pixels stay as they are, and a transform enlarges them on the device.

    Args:
        dataset: The images.
        size: Height and width in pixels.
        channels: 1 for gray, 3 for colour.
    """
    if isinstance(dataset, CachedDataset) and dataset.images.shape[1] == channels:
        return dataset
    return cache(dataset, None if dataset.name == "FER2013" else size, channels)


def first_images(part: FaceDataset, limit: int) -> NDArray[np.int64]:
    """The rows of a smaller part: the first image of every class, then the second of every class, and so on.

    Raises:
        InvalidOption: If there would not be one of every class.
    """
    labels = part.records.labels
    present = len(np.unique(labels))
    if limit < present:
        raise InvalidOption(f"limit={limit!r}: at least {present}, one image of every class.")
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.sort(np.argsort(turn, kind="stable")[:limit])


def picture_size(train: CachedDataset, recipe: Recipe) -> int | None:
    """What a transform has to resize to; None if the images have the recipe's size already."""
    return None if tuple(train.images.shape[-2:]) == (recipe.size, recipe.size) else recipe.size


def _held_out(train: FaceDataset, fraction: float, seed: int, *, by_subject: bool) -> NDArray[np.int64]:
    """Whole subjects where the division is honest about them, else images of every class in proportion."""
    if by_subject and train.subjects is not None:
        people = len(set(train.subjects))
        if people < 2:
            raise InvalidOption(
                f"validation_fraction={fraction:g}: all training images show one person, who cannot be set aside."
            )
        return subject_kfold(train, min(max(2, round(1 / fraction)), people), seed=seed).folds[0]["test"]
    shares = {"train": 1 - fraction, "validation": fraction}
    return random_split(train, shares, seed=seed, stratify=True).folds[0]["validation"]


def _nested(train: FaceDataset, fraction: float, seed: int) -> NDArray[np.int64]:
    """A share of every class; with the same seed a smaller share is part of a larger one."""
    labels = train.records.labels
    chosen = []
    for label in np.unique(labels):
        members = np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels == label))
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))
