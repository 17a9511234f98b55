"""``ferattn compare``: two trained models on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ferattn.cli.output import require_writable, write_json

if TYPE_CHECKING:
    from ferattn.training import Predictions

__all__ = ["compare"]


def compare(
    run_a: Annotated[Path, typer.Argument(help="The folder of a run, or an npz file of predictions.")],
    run_b: Annotated[Path, typer.Argument(help="Another, on the same test images.")],
    part: Annotated[str | None, typer.Option(help="Which predictions of the runs; by default the test.")] = None,
    confidence: Annotated[float, typer.Option(help="Of the interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")] = None,
) -> None:
    """Whether two models differ on the same images: exact McNemar test and paired bootstrap.

    Probabilities are compared by their negative log-likelihood, and for two runs calibrated, too: each divided by the
    temperature that was fitted where its epoch was chosen.

    Where it is known who is in the images, whole people are drawn, and the test turns the signs of their differences:
    McNemar's would take every image for a case of its own.
    """
    from ferattn.data.keyed import check_seed
    from ferattn.errors import InvalidInput
    from ferattn.statistics import mcnemar, paired_bootstrap, subject_sign_flip
    from ferattn.training.predictions import NOT_HONEST

    require_writable("--json", json_file)
    check_seed(seed)
    b = _predictions(run_b, part)
    a = _predictions(run_a, part).aligned(b)
    if a.views != b.views:
        raise InvalidInput(f"other test-time views: {a.views} against {b.views}; compare like with like.")
    test = mcnemar(a.correct, b.correct)
    interval = paired_bootstrap(a.correct, b.correct, clusters=a.clusters, confidence=confidence, seed=seed)
    method = f"bootstrap over {a.unit}"
    if a.clusters is None:
        name, p, visible = "exact McNemar", test.p_value, _visible(len(a.labels), test.only_a + test.only_b)
    else:
        name, visible = "sign flip over subjects", None
        p = subject_sign_flip(a.correct, b.correct, a.clusters, seed=seed).p_value
    result: dict[str, Any] = {
        "a": str(run_a),
        "b": str(run_b),
        "dataset": a.dataset,
        "views": a.views,
        "images": len(a.labels),
        "accuracy_a": float(a.correct.mean()),
        "accuracy_b": float(b.correct.mean()),
        "honest_a": _honest(run_a, a),
        "honest_b": _honest(run_b, b),
        "difference": test.difference,
        "interval": {"low": interval.low, "high": interval.high, "method": method, "confidence": confidence},
        "mcnemar": {"both": test.both, "only_a": test.only_a, "only_b": test.only_b, "neither": test.neither},
        "test": name,
        "p_value": p,
        "detectable": visible,
    }
    losses = {"nll": (a.nll(), b.nll())}
    temperatures = _temperature(run_a, part), _temperature(run_b, part)
    if temperatures[0] is not None and temperatures[1] is not None:
        losses["calibrated_nll"] = a.nll(temperatures[0]), b.nll(temperatures[1])
    for name_of, (of_a, of_b) in losses.items():
        ends = paired_bootstrap(of_a, of_b, clusters=a.clusters, confidence=confidence, seed=seed)
        result[name_of] = {"a": float(of_a.mean()), "b": float(of_b.mean()), "difference": ends.value}
        result[name_of] |= {
            "interval": {"low": ends.low, "high": ends.high, "method": method, "confidence": confidence}
        }
    write_json(json_file, result)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{a.dataset.removesuffix(NOT_HONEST)}, {len(a.labels)} images, views: {a.views}")
    for label, path in (("a", run_a), ("b", run_b)):
        told = NOT_HONEST if result[f"honest_{label}"] is False else ""
        console.print(f"{label.upper()} {path}: {result[f'accuracy_{label}']:.2%}{told}")
    console.print(
        f"B - A: {100 * test.difference:+.2f} points, {100 * confidence:g} % interval {100 * interval.low:+.2f} to "
        f"{100 * interval.high:+.2f} ({method})"
    )
    console.print(
        f"{name}: only A right {test.only_a}, only B right {test.only_b}, p = {p:.4g}"
        + ("" if visible is None else f"; 80 % power from {100 * visible:.2f} points on")
    )
    for kind, told in (("nll", "negative log-likelihood"), ("calibrated_nll", "the same, calibrated")):
        if kind in result:
            found = result[kind]
            console.print(
                f"{told}: A {found['a']:.4f}, B {found['b']:.4f}, B - A {found['difference']:+.4f}, interval "
                f"{found['interval']['low']:+.4f} to {found['interval']['high']:+.4f}"
            )
    console.print("This compares two trained models. Two recipes need several seeds of each.")


def _honest(path: Path, predictions: Predictions) -> bool | None:
    """Whether predictions are a test: no image of theirs was learnt from or chosen on; None where nobody says so."""
    from ferattn.training import RunFolder
    from ferattn.training.predictions import NOT_HONEST

    if predictions.dataset.endswith(NOT_HONEST):
        return False
    if path.suffix == ".npz":
        return None
    data = RunFolder(path).config["data"]
    return bool(data["honest"]) and predictions.checksum == data["sha256"]["test"]


def _temperature(path: Path, part: str | None) -> float | None:
    """The temperature of a run, for a part on which it was not fitted."""
    from ferattn.training import RunFolder

    run = RunFolder(path)
    if path.suffix == ".npz" or not run.finished or part == run.config["data"]["select_on"]:
        return None
    temperature: float | None = run.results["temperature"]
    return temperature


def _visible(images: int, discordant: int) -> float | None:
    """The smallest difference that McNemar's test sees with so many images on which one model is right."""
    from ferattn.statistics import detectable_by_mcnemar

    try:
        return detectable_by_mcnemar(images, discordant / images) if 0 < discordant < images else None
    except ValueError:  # so few images that nothing could be found
        return None


def _predictions(path: Path, part: str | None) -> Predictions:
    import numpy as np

    from ferattn.errors import InvalidInput, InvalidOption, choose
    from ferattn.training import Predictions, RunFolder

    if path.suffix == ".npz":
        if part is not None:
            raise InvalidOption(f"--part {part}: a run has parts; {path} is a file of predictions.")
        found = Predictions.load(path)
    else:
        run = RunFolder(path)
        files = {file.stem.partition("-")[2]: file for file in sorted(path.glob("predictions-*.npz"))}
        part = run.config["data"]["test_on"] if part is None else part
        choose(files or {part: path}, part, f"part of {path}")
        found = run.predictions(part)
    if not np.isfinite(found.logits).all():
        raise InvalidInput(f"{path}: some logits are not finite.")
    return found
