"""What a test set shares with the training set: images, near-identical images, people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ferattn.data.cache import cache
from ferattn.data.dataset import FaceDataset
from ferattn.data.duplicates import NEAR, Duplicates, find_duplicates
from ferattn.errors import InvalidOption

__all__ = ["LeakReport", "Match", "check_leaks"]

COMPARED_SIZE = 48


class Match(NamedTuple):
    """An image and the most similar one in another part."""

    image: str
    part: str
    label: str
    other: str
    other_part: str
    other_label: str
    similarity: float
    kind: str


@dataclass(frozen=True)
class LeakReport:
    """What the parts of a split share.

    Attributes:
        sizes: Number of images in each part.
        matches: For each image and each other part that holds a copy of it, the most similar copy; ``kind``
            is ``identical``, ``near`` or ``mirrored``.
        shared_subjects: People in two parts, by ``"part/part"``; None where the subjects are not known.
        repeated: Images in each part whose pixels occur earlier in the same part: no leak, but counted twice.
        label_conflicts: Images whose pixels occur again under another class, anywhere.
        threshold: Correlation from which images were called near-identical.
    """

    sizes: dict[str, int]
    matches: tuple[Match, ...]
    shared_subjects: dict[str, list[str]] | None
    repeated: dict[str, int]
    label_conflicts: int
    threshold: float

    @property
    def leaks(self) -> bool:
        """Whether any two parts share an image or a person."""
        return bool(self.matches) or any((self.shared_subjects or {}).values())

    def counts(self) -> dict[tuple[str, str], dict[str, int]]:
        """For each ordered pair of parts, how many images of the first have a copy in the second, by kind."""
        table: dict[tuple[str, str], dict[str, int]] = {
            (part, other): {"identical": 0, "near": 0, "mirrored": 0}
            for part in self.sizes
            for other in self.sizes
            if part != other
        }
        for match in self.matches:
            table[match.part, match.other_part][match.kind] += 1
        return table

    def to_dict(self) -> dict[str, Any]:
        """The report as plain lists and numbers, for JSON."""
        content = asdict(self)
        content["matches"] = [match._asdict() for match in self.matches]
        content["counts"] = {f"{part}/{other}": numbers for (part, other), numbers in self.counts().items()}
        return {"leaks": self.leaks, **content}


def check_leaks(
    dataset: FaceDataset,
    parts: Mapping[str, NDArray[np.int64]],
    *,
    threshold: float = NEAR,
    mirrored: bool = True,
) -> LeakReport:
    """Look for images and people that occur in more than one part.

    Images are compared in grey at 48 x 48 pixels, everyone with everyone; the time grows with the square of
    their number (35,887: seconds on two cores).

    Args:
        dataset: The images.
        parts: Positions of the images of each part, as in ``Splits.folds``.
        threshold: Correlation of the pixels from which two images are called near-identical.
        mirrored: Whether mirrored copies count too.

    Raises:
        InvalidOption: If an image is in two parts, or there are no parts.
        InvalidInput: If an image cannot be read.
    """
    if not parts:
        raise InvalidOption("parts is empty: nothing to compare.")
    rows = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts.values()])
    if len(np.unique(rows)) != len(rows):
        raise InvalidOption("parts share positions: an image can be in one part only.")
    part_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    chosen = dataset.subset(rows)
    small = cache(chosen, size=COMPARED_SIZE, channels=1)
    if len(small) < len(chosen):  # unreadable images were skipped
        place = {name: row for row, name in enumerate(chosen.ids)}
        part_of = part_of[[place[name] for name in small.ids]]
    names = tuple(parts)
    duplicates = find_duplicates(small.images, threshold=threshold, mirrored=mirrored)
    repeated = Counter[str]()
    seen: set[tuple[int, int]] = set()
    for group, part in zip(duplicates.group.tolist(), part_of.tolist(), strict=True):
        repeated[names[part]] += (group, part) in seen
        seen.add((group, part))
    labels_of: dict[int, set[int]] = defaultdict(set)
    for group, label in zip(duplicates.group.tolist(), small.records.labels.tolist(), strict=True):
        labels_of[group].add(label)
    return LeakReport(
        sizes={name: int((part_of == number).sum()) for number, name in enumerate(names)},
        matches=tuple(_matches(small, duplicates, part_of, names)),
        shared_subjects=_shared_subjects(small, part_of, names),
        repeated={name: repeated[name] for name in names},
        label_conflicts=sum(len(labels_of[group]) > 1 for group in duplicates.group.tolist()),
        threshold=threshold,
    )


def _matches(
    dataset: FaceDataset, duplicates: Duplicates, part_of: NDArray[np.int64], names: tuple[str, ...]
) -> list[Match]:
    # The first member of each group in each part stands for the others.
    member: dict[int, dict[int, int]] = defaultdict(dict)
    for row, group in enumerate(duplicates.group.tolist()):
        member[group].setdefault(int(part_of[row]), row)
    near: dict[int, list[tuple[float, str, int]]] = defaultdict(list)
    for (a, b), similarity, flip in zip(
        duplicates.pairs.tolist(), duplicates.similarity.tolist(), duplicates.mirrored.tolist(), strict=True
    ):
        kind = "mirrored" if flip else "near"
        near[a].append((similarity, kind, b))
        near[b].append((similarity, kind, a))
    found = []
    for row, group in enumerate(duplicates.group.tolist()):
        own = int(part_of[row])
        candidates = [(1.0, "identical", group), *sorted(near.get(group, ()), reverse=True)]
        done = {own}
        for similarity, kind, other_group in candidates:
            for part, other in member[other_group].items():
                if part not in done:
                    done.add(part)
                    found.append(_match(dataset, row, other, names[own], names[part], similarity, kind))
    return found


def _match(
    dataset: FaceDataset, row: int, other: int, part: str, other_part: str, similarity: float, kind: str
) -> Match:
    labels, classes = dataset.records.labels, dataset.classes
    name = [classes[label] if label >= 0 else "" for label in (labels[row], labels[other])]
    return Match(dataset.ids[row], part, name[0], dataset.ids[other], other_part, name[1], round(similarity, 4), kind)


def _shared_subjects(
    dataset: FaceDataset, part_of: NDArray[np.int64], names: tuple[str, ...]
) -> dict[str, list[str]] | None:
    if dataset.subjects is None:
        return None
    people: list[set[str]] = [set() for _ in names]
    for subject, part in zip(dataset.subjects, part_of.tolist(), strict=True):
        people[part].add(subject)
    return {
        f"{names[a]}/{names[b]}": sorted(people[a] & people[b])
        for a in range(len(names))
        for b in range(a + 1, len(names))
        if people[a] & people[b]
    }
