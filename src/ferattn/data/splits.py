"""Divisions of a dataset: as published (random over images) and honest (official, or by subject).

The published experiments on CK+ and JAFFE split at random over images, so the same face, on CK+ even the same
second of the same sequence, is on both sides. ``honest`` says of every division whether it avoids that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferattn.data.dataset import FaceDataset, part_table
from ferattn.data.groups import stratified_groups
from ferattn.data.keyed import check_seed
from ferattn.errors import InvalidInput, InvalidOption, choose
from ferattn.files import write_atomically

__all__ = [
    "SPLITS",
    "Splits",
    "leave_one_subject_out",
    "load_splits",
    "make_splits",
    "merged_test",
    "official",
    "random_split",
    "save_splits",
    "subject_kfold",
]

FORMAT = "ferattn-splits-1"
Fold = dict[str, NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Splits:
    """One or several ways to divide a dataset.

    Attributes:
        scheme: How it was made.
        honest: False where images of one subject may be on both sides.
        seed: Of the random choices; None where there are none.
        folds: For each fold, the positions of the images of ``train``, ``test`` and so on.
    """

    scheme: str
    honest: bool
    seed: int | None
    folds: tuple[Fold, ...]

    def __len__(self) -> int:
        return len(self.folds)

    def apply(self, dataset: FaceDataset, fold: int = 0) -> dict[str, FaceDataset]:
        """The parts of one fold as datasets.

        Raises:
            InvalidOption: If there is no such fold.
        """
        if not 0 <= fold < len(self.folds):
            raise InvalidOption(f"fold={fold!r}: {self.scheme} has folds 0 to {len(self.folds) - 1}.")
        return {name: dataset.subset(rows) for name, rows in self.folds[fold].items()}


def official(dataset: FaceDataset) -> Splits:
    """The split that the dataset's makers published; on FER2013 train, public and private test.

    Raises:
        InvalidOption: If the dataset has none.
    """
    table = {name: rows for name, rows in part_table(dataset.records).items() if name in (dataset.parts or ())}
    if len(table) < 2:
        raise InvalidOption(f"{dataset.name} has no official split here; its parts: {', '.join(table) or 'none'}.")
    if "merged" in table:
        raise InvalidOption(
            f"{dataset.name} has no official split here: the files do not say which test images are public and which "
            "private. The scheme 'merged-test' takes them together, and says that it is not honest."
        )
    return Splits("official", honest=True, seed=None, folds=(table,))


def merged_test(dataset: FaceDataset) -> Splits:
    """FER2013's training set, and both its tests as one of 7,178 images, as Luo and Miskow used it.

    Not honest: whoever tests on both halves has none left on which to choose a model.

    Raises:
        InvalidOption: If the dataset has no such parts.
    """
    table = part_table(dataset.records)
    if not {"train", "merged"} <= set(table):
        raise InvalidOption(f"{dataset.name} has no merged test here; its parts: {', '.join(table) or 'none'}.")
    return Splits("merged-test", honest=False, seed=None, folds=({"train": table["train"], "test": table["merged"]},))


def random_split(
    dataset: FaceDataset, fractions: Mapping[str, float], *, seed: int = 0, stratify: bool = False
) -> Splits:
    """Divide at random over images, as published for CK+ and JAFFE.

    Args:
        dataset: What to divide.
        fractions: Share of each part, such as ``{"train": 0.8, "test": 0.2}``; they add up to 1. Sizes are
            rounded so that they add up to the whole.
        seed: Same seed, same split.
        stratify: Whether each part gets the same share of every class (to within one image).

    Raises:
        InvalidOption: If the shares do not add up to 1, or a part would be empty.
    """
    shares = list(fractions.values())
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise InvalidOption(f"fractions={dict(fractions)}: positive shares that add up to 1 are needed.")
    generator = np.random.default_rng(check_seed(seed))
    n = len(dataset)
    order = generator.permutation(n)
    if stratify:
        # Spread every class evenly over the order: a cut anywhere takes the same share of each.
        labels = dataset.records.labels[order]
        place = np.empty(n)
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            place[members] = (np.arange(len(members)) + generator.random()) / len(members)
        order = order[np.argsort(place, kind="stable")]
    cuts = np.rint(np.cumsum(shares) * n).astype(int)
    fold = {name: np.sort(rows) for name, rows in zip(fractions, np.split(order, cuts[:-1]), strict=True)}
    empty = [name for name, rows in fold.items() if not len(rows)]
    if empty:
        raise InvalidOption(f"{dataset.name} has {n} images: {', '.join(empty)} would be empty.")
    return Splits("random", honest=False, seed=seed, folds=(fold,))


def subject_kfold(dataset: FaceDataset, k: int = 10, *, seed: int = 0, validation: bool = False) -> Splits:
    """K folds in which no subject is on both sides and classes are spread as evenly as subjects allow.

    Args:
        dataset: What to divide; must know its subjects.
        k: Number of folds; every image is in the test part of exactly one.
        seed: Same seed, same folds.
        validation: Whether the next fold's test subjects are set aside as ``validation``.

    Raises:
        InvalidOption: If there are no subjects, or fewer than ``k``.
    """
    subjects = _subjects(dataset)
    people = len(set(subjects))
    if not isinstance(k, int) or not 2 + validation <= k <= people:
        raise InvalidOption(f"k={k!r}: from {2 + validation} to {people}, the number of subjects of {dataset.name}.")
    fold_of = stratified_groups(dataset.records.labels, subjects, k, seed=check_seed(seed))
    return Splits(f"subject-{k}-fold", honest=True, seed=seed, folds=_rotate(fold_of, k, validation))


def leave_one_subject_out(dataset: FaceDataset, *, validation: bool = False) -> Splits:
    """One fold for each subject, whose images are the test part; in alphabetical order of the subjects.

    Args:
        dataset: What to divide; must know its subjects.
        validation: Whether the next subject is set aside as ``validation``.

    Raises:
        InvalidOption: If there are no subjects, or too few.
    """
    subjects = _subjects(dataset)
    people, fold_of = np.unique(np.array(subjects, dtype=str), return_inverse=True)
    if len(people) < 2 + validation:
        raise InvalidOption(f"{dataset.name} has {len(people)} subjects; at least {2 + validation} are needed.")
    folds = _rotate(fold_of.astype(np.int64), len(people), validation)
    return Splits("leave-one-subject-out", honest=True, seed=None, folds=folds)


SPLITS: dict[str, Callable[[FaceDataset, int], Splits]] = {
    "official": lambda dataset, seed: official(dataset),
    "merged-test": lambda dataset, seed: merged_test(dataset),
    "random-80-20": lambda dataset, seed: random_split(dataset, {"train": 0.8, "test": 0.2}, seed=seed),
    "random-80-10-10": lambda dataset, seed: random_split(
        dataset, {"train": 0.8, "validation": 0.1, "test": 0.1}, seed=seed
    ),
    "subject-10-fold": lambda dataset, seed: subject_kfold(dataset, seed=seed),
    "leave-one-subject-out": lambda dataset, seed: leave_one_subject_out(dataset),
}
"""The divisions by name. Honest are ``official`` and those by subject."""


def make_splits(scheme: str, dataset: FaceDataset, seed: int = 0) -> Splits:
    """Divide a dataset by an entry of ``SPLITS``.

    Raises:
        UnknownChoice: If there is no such scheme.
        InvalidOption: If the dataset lacks what the scheme needs.
    """
    return choose(SPLITS, scheme, "split")(dataset, seed)


def save_splits(splits: Splits, dataset: FaceDataset, path: str | os.PathLike[str]) -> None:
    """Write the names of the images of every part, with a checksum of the data, as JSON.

    The file appears complete or not at all.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "dataset": dataset.name,
        "scheme": splits.scheme,
        "honest": splits.honest,
        "seed": splits.seed,
        "images": len(dataset),
        "sha256": dataset.checksum(),
        "folds": [{name: [dataset.ids[row] for row in rows] for name, rows in fold.items()} for fold in splits.folds],
    }
    write_atomically(Path(path), (json.dumps(content, indent=1) + "\n").encode())


def load_splits(path: str | os.PathLike[str], dataset: FaceDataset) -> Splits:
    """Read a file of ``save_splits`` back for the same data.

    Raises:
        InvalidInput: If the file is damaged, or was made for other data: other images, names or classes.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        made_for = (content["format"], content["sha256"])
        scheme, honest, seed = content["scheme"], content["honest"], content["seed"]
        named = [{str(part): list(ids) for part, ids in fold.items()} for fold in content["folds"]]
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"{path}: not a file of splits ({type(error).__name__}: {error}).") from error
    if made_for[0] != FORMAT:
        raise InvalidInput(f"{path}: format {made_for[0]!r}; this version reads {FORMAT!r}.")
    checksum = dataset.checksum()
    if made_for[1] != checksum:
        raise InvalidInput(
            f"{path}: made for other data. It belongs to {content.get('images')} images of "
            f"{content.get('dataset')!r} with checksum {str(made_for[1])[:12]}…; "
            f"{dataset.name!r} here has {len(dataset)} with {checksum[:12]}…."
        )
    place = {name: row for row, name in enumerate(dataset.ids)}
    try:
        folds = tuple(
            {part: np.array([place[name] for name in ids], dtype=np.int64) for part, ids in fold.items()}
            for fold in named
        )
    except (KeyError, TypeError) as error:
        raise InvalidInput(f"{path}: names an image that the data does not have: {error}.") from error
    for number, fold in enumerate(folds):
        rows = np.concatenate([*fold.values(), np.zeros(0, np.int64)])
        if len(np.unique(rows)) != len(rows):
            raise InvalidInput(f"{path}: fold {number} has an image twice.")
    return Splits(str(scheme), bool(honest), seed, folds)


def _rotate(fold_of: NDArray[np.int64], k: int, validation: bool) -> tuple[Fold, ...]:
    folds = []
    for test in range(k):
        fold: Fold = {}
        rest = fold_of != test
        if validation:
            rest &= fold_of != (test + 1) % k
        fold["train"] = np.flatnonzero(rest)
        if validation:
            fold["validation"] = np.flatnonzero(fold_of == (test + 1) % k)
        fold["test"] = np.flatnonzero(fold_of == test)
        folds.append(fold)
    return tuple(folds)


def _subjects(dataset: FaceDataset) -> tuple[str, ...]:
    if dataset.subjects is None:
        raise InvalidOption(f"{dataset.name} does not say who is in its images, so it cannot be divided by subject.")
    return dataset.subjects
