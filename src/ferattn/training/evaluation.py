"""From predictions to figures, each with its interval; torchmetrics computes the figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ferattn.errors import InvalidInput, InvalidOption, MissingDependency
from ferattn.statistics import Interval, bootstrap, wilson
from ferattn.training.predictions import Predictions, log_losses

__all__ = ["evaluate", "fit_temperature"]

_BINS = 15
_FURTHEST = 4.0
"""How far a temperature's logarithm is looked for."""


def fit_temperature(predictions: Predictions) -> float:
    """The number by which logits are divided so that the likelihood of these labels is largest.

    Fit it on validation images only: on test images it would make the calibration look better than it is.

    Returns:
        The temperature; 1 where every image is right, and the likelihood rises for as long as the logits do. Of
        logits that say nothing it is the largest that is tried, which makes the classes all but equally probable.

    Source: Guo et al. 2017, arXiv 1706.04599.

    Raises:
        InvalidInput: If there are no predictions, or some are not finite.
    """
    if not len(predictions.labels):
        raise InvalidInput("a temperature needs predictions on at least one validation image.")
    _require_finite(predictions)
    try:
        from scipy.optimize import minimize_scalar
    except ImportError as error:
        raise MissingDependency('calibration needs scipy: pip install "ferattn[train]"') from error
    logits = predictions.logits.astype(np.float64)
    found = minimize_scalar(
        lambda log_t: float(log_losses(logits / np.exp(log_t), predictions.labels).mean()),
        bounds=(-_FURTHEST, _FURTHEST),
        method="bounded",
    )
    return 1.0 if predictions.correct.all() or found.x < 0.01 - _FURTHEST else float(np.exp(found.x))


def evaluate(
    predictions: Predictions,
    *,
    temperature: float | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy, macro F1, per-class recall and precision, confusion matrix, calibration, each with its interval.

    Shares have Wilson's interval; where subjects are known they have a bootstrap over subjects instead (Wilson's with
    as many trials as subjects where all or none are right), as have macro F1, calibration error and NLL (over images
    where subjects are not known). A test set of one subject, a fold of leave-one-subject-out, says nothing of other
    people: its intervals are over the images, and say so. The calibration error of a sample is too large, most of all
    in small bins, and under resampling larger still: its interval is the bootstrap's, reflected, cut off at 0 and
    widened to its value where that lies above.

    Args:
        predictions: Of a test set, for one kind of views.
        temperature: Fitted on validation images; adds ``calibrated`` figures.
        confidence: Of the intervals.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InvalidInput: If there are no labelled predictions, or some are not finite.
        InvalidOption: If the temperature is not positive.
    """
    if temperature is not None and not 0 < temperature < np.inf:
        raise InvalidOption(f"temperature={temperature!r}: a positive number.")
    labels, k = predictions.labels, len(predictions.classes)
    if not len(labels) or labels.min() < 0:
        raise InvalidInput(f"{predictions.dataset}: no images to evaluate, or some without a label.")
    _require_finite(predictions)
    options: dict[str, Any] = {
        "clusters": predictions.clusters,
        "confidence": confidence,
        "resamples": resamples,
        "seed": seed,
    }
    predicted = predictions.logits.argmax(1)
    figures = _figures(predictions.logits, labels, k)
    confusion = figures.pop("confusion")
    correct = predicted == labels
    if len(labels) < 2:
        raise InvalidInput(f"{predictions.dataset}: one image is no test set.")
    accuracy = _share(correct, np.ones_like(correct), options)
    one_hot = np.eye(k)
    pairs = one_hot[labels][:, :, None] * one_hot[predicted][:, None, :]
    result: dict[str, Any] = {
        "dataset": predictions.dataset,
        "images": len(labels),
        "views": predictions.views,
        "confidence": confidence,
        "intervals_over": predictions.unit,
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
        for figure, counted in (("recall", labels == row), ("precision", predicted == row)):
            share = _share(correct, counted, options) if counted.any() else None
            result[figure][name] = {
                "value": None if share is None else share.value,
                "interval": None if share is None else _interval(share),
                "images": int(counted.sum()),
            }
    if temperature is not None:
        scaled = predictions.logits / temperature
        result["calibrated"] = {
            "temperature": temperature,
            **_calibration(scaled, labels, _figures(scaled, labels, k), options),
        }
    return result


def _require_finite(predictions: Predictions) -> None:
    if not np.isfinite(predictions.logits).all():
        raise InvalidInput(f"{predictions.dataset}: some logits are not finite.")


def _share(right: NDArray[np.bool_], counted: NDArray[np.bool_], options: dict[str, Any]) -> Interval:
    """The share of the images counted that are right, (n,) of both, with its interval."""
    trials, clusters, confidence = int(counted.sum()), options["clusters"], options["confidence"]
    hits = int((right & counted).sum())
    if clusters is None:
        return wilson(hits, trials, confidence)
    people = len({clusters[row] for row in np.flatnonzero(counted)})
    if people == 1:
        return replace(wilson(hits, trials, confidence), method="wilson over images of one subject")
    if hits in (0, trials):  # every draw would say the same
        return replace(wilson(people if hits else 0, people, confidence), method="wilson over subjects")

    def share(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn = weights @ counted
        shares: NDArray[np.float64] = np.where(drawn, weights @ (right & counted) / np.maximum(drawn, 1), np.nan)
        return shares

    return bootstrap(share, len(right), **options)


def _figures(logits: NDArray[Any], labels: NDArray[np.int64], k: int) -> dict[str, Any]:
    try:
        from torchmetrics.functional import classification as tm
    except ImportError as error:
        raise MissingDependency('evaluation needs torchmetrics: pip install "ferattn[train]"') from error
    scores, target = torch.from_numpy(logits).float(), torch.from_numpy(labels)
    shares = scores.softmax(1).clamp(max=1 - 2**-24)  # torchmetrics gives 1 a bin of its own, one too many
    return {
        "macro_f1": float(tm.multiclass_f1_score(scores, target, k, average="macro")),
        "ece": float(tm.multiclass_calibration_error(shares, target, k, n_bins=_BINS)),
        "confusion": tm.multiclass_confusion_matrix(scores, target, k).tolist(),
    }


def _calibration(
    logits: NDArray[Any], labels: NDArray[np.int64], figures: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    nll = log_losses(logits.astype(np.float64), labels)
    gaps = _gaps(logits, labels)
    of_nll = bootstrap(lambda w: w @ nll / w.sum(1), len(labels), **options)
    of_ece, ece = bootstrap(lambda w: np.abs(w @ gaps).sum(1) / w.sum(1), len(labels), **options), figures["ece"]
    low, high = min(ece, max(0.0, 2 * ece - of_ece.high)), max(ece, 2 * ece - of_ece.low)
    return {
        "ece": ece,
        "ece_interval": _interval(replace(of_ece, low=low, high=high, method=f"{of_ece.method}, reflected")),
        "nll": of_nll.value,
        "nll_interval": _interval(of_nll),
    }


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
