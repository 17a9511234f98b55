"""What a model said about each image of a test set, kept so that any later comparison is paired."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ferattn.data import BatchTransform, FaceDataset, make_loader, views
from ferattn.errors import InvalidInput
from ferattn.files import write_atomically

__all__ = ["NOT_HONEST", "Predictions", "log_losses", "pool", "predict"]

NOT_HONEST = " (not honest)"
"""What stands behind the name of a test that is none."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of every image of a test set, with what is needed to recognise the images again.

    Attributes:
        logits: Shape (n, classes). With several views, the logarithm of the mean probability.
        labels: The true classes, shape (n,).
        ids: A name for each image.
        classes: Names of the classes.
        views: Which test-time views were averaged: ``"none"``, ``"flip"`` or ``"ten-crop"``.
        dataset: What the data is called, and which part of it.
        checksum: Of the images and their labels.
        subjects: The person in each image, where known.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    views: str
    dataset: str
    checksum: str
    subjects: tuple[str, ...] | None = None

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each image was classified right. Shape: (n,)."""
        right: NDArray[np.bool_] = self.logits.argmax(1) == self.labels
        return right

    def nll(self, temperature: float = 1.0) -> NDArray[np.float64]:
        """Negative log-likelihood of each image's own class, in nats. Shape: (n,).

        Args:
            temperature: By which the logits are divided.
        """
        return log_losses(self.logits.astype(np.float64) / temperature, self.labels)

    @property
    def clusters(self) -> tuple[str, ...] | None:
        """The subjects where there are several: what intervals and tests have to draw whole."""
        return self.subjects if self.subjects is not None and len(set(self.subjects)) > 1 else None

    @property
    def unit(self) -> str:
        """What is drawn: ``"subjects"``, ``"images"``, or ``"images of one subject"``."""
        if self.clusters is not None:
            return "subjects"
        return "images" if self.subjects is None else "images of one subject"

    def save(self, path: Path) -> None:
        """Write an npz file, completely or not at all."""
        content: dict[str, Any] = {
            "logits": self.logits,
            "labels": self.labels,
            "ids": np.array(self.ids, dtype=str),
            "classes": np.array(self.classes, dtype=str),
            "about": np.array([self.views, self.dataset, self.checksum], dtype=str),
        }
        if self.subjects is not None:
            content["subjects"] = np.array(self.subjects, dtype=str)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **content)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read a file of :meth:`save`.

        Raises:
            InvalidInput: If it cannot be read or is no file of predictions.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                kind, dataset, checksum = content["about"].tolist()
                return cls(
                    content["logits"],
                    content["labels"],
                    tuple(content["ids"].tolist()),
                    tuple(content["classes"].tolist()),
                    kind,
                    dataset,
                    checksum,
                    tuple(content["subjects"].tolist()) if "subjects" in content else None,
                )
        except OSError as error:
            raise InvalidInput(f"{path}: cannot be read ({error.strerror or error}).") from error
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InvalidInput(f"{path}: no file of predictions ({error}).") from error

    def aligned(self, other: Predictions) -> Predictions:
        """These predictions in the other's order.

        Raises:
            InvalidInput: If the two are not about the same images, labels and classes.
        """
        if self.classes != other.classes:
            raise InvalidInput(f"other classes: {', '.join(self.classes)} against {', '.join(other.classes)}.")
        if self.checksum != other.checksum or sorted(self.ids) != sorted(other.ids):
            shared = len(set(self.ids) & set(other.ids))
            raise InvalidInput(
                f"predictions of different test sets: {self.dataset} ({len(self.ids)} images) and {other.dataset} "
                f"({len(other.ids)}), {shared} names in common; only the same images can be compared."
            )
        place = {name: row for row, name in enumerate(self.ids)}
        rows = [place[name] for name in other.ids]
        return replace(
            self,
            logits=self.logits[rows],
            labels=self.labels[rows],
            ids=other.ids,
            subjects=None if self.subjects is None else tuple(self.subjects[row] for row in rows),
        )


def predict(
    model: nn.Module,
    transform: BatchTransform,
    dataset: FaceDataset,
    *,
    name: str,
    kind: str = "none",
    batch_size: int = 256,
) -> Predictions:
    """Classify every image, on the device where the model is.

    Args:
        model: From images to logits; left in the mode in which it was.
        transform: From 8-bit images to what the model sees; used in evaluation mode.
        dataset: The images.
        name: What to call the images in reports.
        kind: Test-time views, an entry of ``ferattn.data.VIEWS``; probabilities are averaged over them.
        batch_size: Images at a time; with views, fewer images and as many views.
    """
    device = next(model.parameters()).device
    modes = model.training, transform.training
    model.eval()
    transform.eval().to(device)
    outputs, labels = [], []
    try:
        with torch.inference_mode():
            for batch in make_loader(dataset, batch_size if kind == "none" else max(1, batch_size // 8)):
                stack = views(batch.images.to(device), kind)
                logits = model(transform(stack.flatten(0, 1))).float().unflatten(0, stack.shape[:2])
                mean = logits[:, 0] if kind == "none" else logits.log_softmax(-1).exp().mean(1).clamp_min(1e-38).log()
                outputs.append(mean.cpu())
                labels.append(batch.labels.cpu())
    finally:
        model.train(modes[0])
        transform.train(modes[1])
    return Predictions(
        torch.cat(outputs).numpy(),
        torch.cat(labels).numpy(),
        dataset.ids,
        dataset.classes,
        kind,
        name,
        dataset.checksum(),
        dataset.subjects,
    )


def log_losses(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Minus the logarithm of the softmax at each label. Shapes: (n, classes), (n,) -> (n,)."""
    shifted = logits - logits.max(1, keepdims=True)
    losses: NDArray[np.float64] = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return losses


def pool(folds: Sequence[Predictions]) -> Predictions:
    """The predictions of several folds as one test set in which every image occurs once.

    Args:
        folds: What each fold's model said about the images that it had not learnt from.

    Raises:
        InvalidInput: If there are none, an image occurs twice, or classes or views differ.
    """
    if not folds:
        raise InvalidInput("no predictions to pool.")
    first = folds[0]
    for fold in folds:
        if (fold.classes, fold.views) != (first.classes, first.views):
            raise InvalidInput("folds with other classes or other test-time views cannot be pooled.")
    ids = tuple(name for fold in folds for name in fold.ids)
    if len(set(ids)) != len(ids):
        raise InvalidInput("an image is in the test part of two folds.")
    honest = not any(fold.dataset.endswith(NOT_HONEST) for fold in folds)
    known = [fold.subjects for fold in folds if fold.subjects is not None]
    return replace(
        first,
        logits=np.concatenate([fold.logits for fold in folds]),
        labels=np.concatenate([fold.labels for fold in folds]),
        ids=ids,
        dataset=f"{first.dataset.removesuffix(NOT_HONEST)}, {len(folds)} folds" + ("" if honest else NOT_HONEST),
        checksum="+".join(sorted(fold.checksum for fold in folds)),
        subjects=tuple(name for part in known for name in part) if len(known) == len(folds) else None,
    )
