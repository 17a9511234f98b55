"""From predictions to figures, each with its interval; torchmetrics computes the figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ferattn.errors import InvalidInput, MissingDependency
from ferattn.statistics import Interval, bootstrap, wilson
from ferattn.training.predictions import Predictions

__all__ = ["evaluate", "fit_temperature"]

_BINS = 15


def fit_temperature(predictions: Predictions) -> float:
    """The number by which logits are divided so that the likelihood of these labels is largest.

    Fit it on validation images only: on test images it would make the calibration look better than it is.

    Source: Guo et al. 2017, arXiv 1706.04599.

    Raises:
        InvalidInput: If there are no predictions.
    """
    if not len(predictions.labels):
        raise InvalidInput("a temperature needs predictions on at least one validation image.")
    try:
        from scipy.optimize import minimize_scalar
    except ImportError as error:
        raise MissingDependency('calibration needs scipy: pip install "ferattn[train]"') from error
    logits = predictions.logits.astype(np.float64)
    found = minimize_scalar(
        lambda log_t: float(_nll(logits / np.exp(log_t), predictions.labels).mean()), bounds=(-4, 4), method="bounded"
    )
    return float(np.exp(found.x))


def evaluate(
    predictions: Predictions,
    *,
    temperature: float | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy, macro F1, per-class recall and precision, confusion matrix, calibration, each with its interval.

    Shares have Wilson's interval; where subjects are known the accuracy has a bootstrap over subjects instead, as
    have macro F1, calibration error and NLL (over images where subjects are not known). A test set of one subject,
    a fold of leave-one-subject-out, says nothing of other people: its intervals are over the images, and say so.

    Args:
        predictions: Of a test set, for one kind of views.
        temperature: Fitted on validation images; adds ``calibrated`` figures.
        confidence: Of the intervals.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InvalidInput: If there are no labelled predictions, or some are not finite.
    """
    labels, k = predictions.labels, len(predictions.classes)
    if not len(labels) or labels.min() < 0:
        raise InvalidInput(f"{predictions.dataset}: no images to evaluate, or some without a label.")
    if not np.isfinite(predictions.logits).all():
        raise InvalidInput(f"{predictions.dataset}: some logits are not finite.")
    people = None if predictions.subjects is None else len(set(predictions.subjects))
    clusters = predictions.subjects if people is not None and people > 1 else None
    options: dict[str, Any] = {
        "clusters": clusters,
        "confidence": confidence,
        "resamples": resamples,
        "seed": seed,
    }
    predicted = predictions.logits.argmax(1)
    figures = _figures(predictions.logits, labels, k)
    confusion = figures.pop("confusion")
    correct = (predicted == labels).astype(np.float64)
    if len(labels) < 2:
        raise InvalidInput(f"{predictions.dataset}: one image is no test set.")
    if clusters is None:
        accuracy = wilson(int(correct.sum()), len(labels), confidence)
    else:
        accuracy = bootstrap(lambda w: w @ correct / w.sum(1), len(labels), **options)
    one_hot = np.eye(k)
    pairs = one_hot[labels][:, :, None] * one_hot[predicted][:, None, :]
    result: dict[str, Any] = {
        "dataset": predictions.dataset,
        "images": len(labels),
        "views": predictions.views,
        "confidence": confidence,
        "intervals_over": "images of one subject" if people == 1 else "images" if clusters is None else "subjects",
        "accuracy": float(correct.mean()),
        "accuracy_interval": _interval(accuracy),
        "macro_f1": figures["macro_f1"],
        "macro_f1_interval": _interval(bootstrap(lambda w: _macro_f1(w, pairs), len(labels), **options)),
        **_calibration(predictions.logits, labels, figures, options),
        "classes": list(predictions.classes),
        "recall": {},
        "precision": {},
        "confusion_matrix": confusion,
    }
    for row, name in enumerate(predictions.classes):
        hits = confusion[row][row]
        for figure, trials in (("recall", sum(confusion[row])), ("precision", sum(line[row] for line in confusion))):
            share = wilson(hits, trials, confidence) if trials else None
            result[figure][name] = {
                "value": None if share is None else share.value,
                "interval": None if share is None else _interval(share),
                "images": trials,
            }
    if temperature is not None:
        scaled = predictions.logits / temperature
        result["calibrated"] = {
            "temperature": temperature,
            **_calibration(scaled, labels, _figures(scaled, labels, k), options),
        }
    return result


def _figures(logits: NDArray[Any], labels: NDArray[np.int64], k: int) -> dict[str, Any]:
    try:
        from torchmetrics.functional import classification as tm
    except ImportError as error:
        raise MissingDependency('evaluation needs torchmetrics: pip install "ferattn[train]"') from error
    scores, target = torch.from_numpy(logits).float(), torch.from_numpy(labels)
    return {
        "macro_f1": float(tm.multiclass_f1_score(scores, target, k, average="macro")),
        "ece": float(tm.multiclass_calibration_error(scores.softmax(1), target, k, n_bins=_BINS)),
        "confusion": tm.multiclass_confusion_matrix(scores, target, k).tolist(),
    }


def _calibration(
    logits: NDArray[Any], labels: NDArray[np.int64], figures: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    nll = _nll(logits.astype(np.float64), labels)
    gaps = _gaps(logits, labels)
    of_nll = bootstrap(lambda w: w @ nll / w.sum(1), len(labels), **options)
    of_ece = bootstrap(lambda w: np.abs(w @ gaps).sum(1) / w.sum(1), len(labels), **options)
    return {
        "ece": figures["ece"],
        "ece_interval": _interval(of_ece),
        "nll": of_nll.value,
        "nll_interval": _interval(of_nll),
    }


def _nll(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    losses: NDArray[np.float64] = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return losses


def _gaps(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Right minus confidence of each image, in the column of its bin; sums of columns make the ECE. (n, bins)."""
    probabilities = torch.from_numpy(logits).float().softmax(1)
    confidence, predicted = probabilities.max(1)
    bins = (confidence * _BINS).long().clamp(max=_BINS - 1).numpy()
    gaps = np.zeros((len(labels), _BINS))
    gaps[np.arange(len(labels)), bins] = (predicted.numpy() == labels) - confidence.numpy()
    return gaps


def _macro_f1(weights: NDArray[np.float64], pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Under each row of weights; a class that is neither there nor predicted does not count, as in torchmetrics."""
    confusion = np.tensordot(weights, pairs, 1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    both = confusion.sum(1) + confusion.sum(2)
    present = both > 0
    f1 = np.where(present, 2 * hits / np.where(present, both, 1), 0)
    means: NDArray[np.float64] = f1.sum(1) / present.sum(1)
    return means


def _interval(interval: Interval) -> dict[str, Any]:
    return {"low": interval.low, "high": interval.high, "method": interval.method}
