"""Figures against definitions written out, and predictions that know their images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ferattn.data import AUGMENTATIONS, BatchTransform, views
from ferattn.errors import InvalidInput, InvalidOption
from ferattn.statistics import wilson
from ferattn.training import Predictions, evaluate, fit_temperature, pool, predict
from training import faces


def made(n: int = 300, k: int = 4, *, subjects: bool = False, scale: float = 1.0) -> Predictions:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, k, n)
    logits = generator.normal(0, 1, (n, k))
    logits[np.arange(n), labels] += 1.0
    return Predictions(
        (scale * logits).astype(np.float32),
        labels,
        tuple(f"i{row}" for row in range(n)),
        tuple(f"class {row}" for row in range(k)),
        "none",
        "made",
        "abc",
        tuple(f"P{row // 30}" for row in range(n)) if subjects else None,
    )


def test_figures_by_hand() -> None:
    given = made()
    found = evaluate(given, resamples=200)
    predicted, k = given.logits.argmax(1), 4
    confusion = [[int(((given.labels == i) & (predicted == j)).sum()) for j in range(k)] for i in range(k)]
    assert found["confusion_matrix"] == confusion
    recall = [confusion[i][i] / sum(confusion[i]) for i in range(k)]
    precision = [confusion[i][i] / sum(row[i] for row in confusion) for i in range(k)]
    assert [found["recall"][name]["value"] for name in given.classes] == pytest.approx(recall)
    assert [found["precision"][name]["value"] for name in given.classes] == pytest.approx(precision)
    assert found["macro_f1"] == pytest.approx(
        np.mean([2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)])
    )
    shares = np.exp(given.logits) / np.exp(given.logits).sum(1, keepdims=True)
    assert found["nll"] == pytest.approx(-np.log(shares[np.arange(300), given.labels]).mean(), rel=1e-5)
    confidence, right = shares.max(1), predicted == given.labels
    ece = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        ece += abs((right[inside] - confidence[inside]).sum()) / 300
    assert found["ece"] == pytest.approx(ece, abs=1e-5)
    assert found["accuracy"] == pytest.approx(right.mean())
    interval = wilson(int(right.sum()), 300)
    assert (found["accuracy_interval"]["low"], found["accuracy_interval"]["high"]) == (interval.low, interval.high)
    row = found["recall"]["class 1"]
    assert row["interval"]["high"] == pytest.approx(wilson(confusion[1][1], row["images"]).high)
    for name in ("macro_f1", "ece", "nll"):
        assert found[f"{name}_interval"]["low"] < found[f"{name}_interval"]["high"]
    assert found["nll_interval"]["low"] < found["nll"] < found["nll_interval"]["high"]
    assert found["macro_f1_interval"]["low"] < found["macro_f1"] < found["macro_f1_interval"]["high"]


def test_calibration_error_of_certain_answers_by_its_definition() -> None:
    """Of 500 images with confidence 1 and 500 with 0.95, all in the last of 15 bins."""
    logits = np.zeros((1000, 2), np.float32)
    logits[:500, 0], logits[500:, 0] = 200, np.log(0.95 / 0.05)
    labels = np.zeros(1000, np.int64)
    labels[:50] = 1
    ids = tuple(f"i{row}" for row in range(1000))
    found = evaluate(Predictions(logits, labels, ids, ("a", "b"), "none", "made", "abc"), resamples=200)
    assert found["ece"] == pytest.approx(0.025, abs=2e-5)
    assert found["ece_interval"]["low"] < found["ece"] < found["ece_interval"]["high"]


def test_the_interval_of_the_calibration_error() -> None:
    """Its ends hold the value, also where the error is nothing but noise, and the truth where it is not."""
    generator = np.random.default_rng(0)

    def drawn(n: int, heat: float) -> Predictions:
        logits = generator.normal(0, 1.6, (n, 4)).astype(np.float32)
        shares = np.exp(logits * heat)
        shares /= shares.sum(1, keepdims=True)
        labels = (shares.cumsum(1) > generator.random((n, 1))).argmax(1)
        ids = tuple(f"i{row}" for row in range(n))
        return Predictions(logits, labels, ids, ("a", "b", "c", "d"), "none", "made", "abc")

    truth = evaluate(drawn(50_000, 0.8), resamples=100)["ece"]
    held = 0
    for _ in range(15):
        for heat in (0.8, 1.0):
            found = evaluate(drawn(1000, heat), resamples=200)
            ends = found["ece_interval"]
            assert 0 <= ends["low"] <= found["ece"] <= ends["high"]
            held += heat == 0.8 and ends["low"] <= truth <= ends["high"]
    assert held >= 12


def test_shares_where_people_are_known() -> None:
    """As wide as draws of people are; at all or none right as many trials as people; one person says so."""
    given = made(subjects=True)
    row = given.labels == 2
    alone = np.array(given.subjects) == "P3"
    labels = np.where(row & ~alone, 0, given.labels)  # class 2 is one person's
    logits = given.logits.copy()
    logits[labels == 1] = np.eye(4, dtype=np.float32)[1] * 9  # class 1 is always right
    found = evaluate(replace(given, logits=logits, labels=labels), resamples=300)
    one, sure, some = (found["recall"][f"class {number}"] for number in (2, 1, 0))
    assert one["interval"]["method"] == "wilson over images of one subject"
    assert sure["value"] == sure["interval"]["high"] == 1
    assert sure["interval"]["method"] == "wilson over subjects"
    assert sure["interval"]["low"] == pytest.approx(wilson(10, 10).low)
    assert some["interval"]["method"] == "bootstrap over subjects"
    assert some["interval"]["low"] < some["value"] < some["interval"]["high"]
    assert found["accuracy_interval"]["low"] < found["accuracy"] < found["accuracy_interval"]["high"]


def test_options_of_the_intervals() -> None:
    plain = evaluate(made(), resamples=200)
    assert evaluate(made(), resamples=200, confidence=0.5)["accuracy_interval"] != plain["accuracy_interval"]
    assert evaluate(made(), resamples=200, seed=1)["nll_interval"] != plain["nll_interval"]
    assert evaluate(made(), resamples=300)["nll_interval"] != plain["nll_interval"]
    by_subject = evaluate(made(subjects=True), resamples=200)
    assert by_subject["accuracy_interval"]["method"] == "bootstrap over subjects"
    assert by_subject["accuracy"] == plain["accuracy"]


def test_a_class_that_is_not_there_has_no_recall() -> None:
    given = made()
    found = evaluate(replace(given, labels=np.where(given.labels == 3, 0, given.labels)), resamples=100)
    assert found["recall"]["class 3"] == {"value": None, "interval": None, "images": 0}


@settings(max_examples=15, deadline=None)
@given(st.floats(0.2, 6))
def test_temperature_undoes_a_scale(scale: float) -> None:
    plain, scaled = fit_temperature(made()), fit_temperature(made(scale=scale))
    assert scaled == pytest.approx(plain * scale, rel=1e-2)


def test_temperature_is_the_best_and_calibrates() -> None:
    hot = made(scale=4)
    temperature = fit_temperature(hot)
    found = evaluate(hot, temperature=temperature, resamples=100)
    assert found["calibrated"]["temperature"] == temperature
    assert found["calibrated"]["nll"] < found["nll"]
    assert found["calibrated"]["ece"] < found["ece"]
    for other in (0.95, 1.05):
        worse = evaluate(hot, temperature=temperature * other, resamples=100)
        assert worse["calibrated"]["nll"] > found["calibrated"]["nll"]
    assert "calibrated" not in evaluate(hot, resamples=100)


def test_images_that_do_not_limit_a_temperature() -> None:
    given = made()
    perfect = replace(given, labels=given.logits.argmax(1))
    assert fit_temperature(perfect) == 1
    hopeless = replace(given, labels=given.logits.argmin(1))
    assert fit_temperature(hopeless) > 50
    with pytest.raises(InvalidInput, match="not finite"):
        fit_temperature(replace(given, logits=np.full((300, 4), np.nan, np.float32)))
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidOption, match="temperature="):
            evaluate(given, temperature=wrong)


def test_files_that_are_damaged(tmp_path: Path) -> None:
    made().save(tmp_path / "p.npz")
    content = bytearray((tmp_path / "p.npz").read_bytes())
    for position in range(60, 400, 7):
        content[position] ^= 0xFF
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(InvalidInput, match="no file of predictions"):
        Predictions.load(tmp_path / "p.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(InvalidInput, match="no file of predictions"):
        Predictions.load(tmp_path / "array.npz")


def test_predictions_are_the_models(tmp_path: Path) -> None:
    model, transform, data = faces.network(), BatchTransform(AUGMENTATIONS["strong"]), faces.faces(30, 1, subjects=5)
    model.train()
    found = predict(model, transform, data, name="toy test", batch_size=7)
    expected = model.eval()(data.images / 255)
    torch.testing.assert_close(torch.from_numpy(found.logits), expected.detach())
    assert found.checksum == data.checksum()
    assert found.ids == data.ids
    found.save(tmp_path / "p.npz")
    again = Predictions.load(tmp_path / "p.npz")
    assert np.array_equal(again.logits, found.logits)
    assert (again.ids, again.classes, again.views, again.dataset, again.checksum, again.subjects) == (
        found.ids, found.classes, "none", "toy test", found.checksum, data.subjects,
    )  # fmt: skip


def test_prediction_leaves_the_model_in_its_mode() -> None:
    model, transform = faces.network(dropout=0.5).train(), BatchTransform(AUGMENTATIONS["none"])
    predict(model, transform, faces.faces(8, 1), name="toy")
    assert model.training
    assert transform.training


@pytest.mark.parametrize("kind", ["flip", "ten-crop"])
def test_views_average_probabilities(kind: str) -> None:
    model, data = faces.network().eval(), faces.faces(10, 1, side=8)
    found = predict(model, BatchTransform(AUGMENTATIONS["none"]), data, name="toy", kind=kind)
    for row in range(10):
        stack = views(data.images[row : row + 1], kind)[0]
        mean = model(stack / 255).softmax(1).mean(0)
        torch.testing.assert_close(torch.from_numpy(found.logits[row]).exp(), mean.detach())
    assert found.views == kind


def test_other_test_sets_are_refused() -> None:
    given = made()
    shuffled = replace(given, ids=given.ids[::-1], labels=given.labels[::-1], logits=given.logits[::-1])
    assert np.array_equal(shuffled.aligned(given).logits, given.logits)
    with pytest.raises(InvalidInput, match="different test sets"):
        replace(given, checksum="def").aligned(given)
    with pytest.raises(InvalidInput, match="0 names in common"):
        replace(given, ids=tuple(f"j{row}" for row in range(300))).aligned(given)
    with pytest.raises(InvalidInput, match="other classes"):
        replace(given, classes=given.classes[::-1]).aligned(given)


def test_pooled_folds_are_a_test_only_if_each_is_one() -> None:
    given = made()
    names = {"CK+ test": "a", "CK+ test (not honest)": "b"}
    folds = [replace(given, dataset=name, ids=tuple(mark + one for one in given.ids)) for name, mark in names.items()]
    assert pool(folds).dataset == pool(folds[::-1]).dataset == "CK+ test, 2 folds (not honest)"


def test_folds_are_pooled() -> None:
    given = made(subjects=True)
    rows = np.arange(300)

    def fold(keep: np.ndarray, name: str) -> Predictions:
        return replace(
            given,
            logits=given.logits[keep],
            labels=given.labels[keep],
            ids=tuple(given.ids[row] for row in keep),
            subjects=tuple(given.subjects[row] for row in keep),
            checksum=name,
        )

    whole = pool([fold(rows[:100], "a"), fold(rows[100:], "b")])
    assert whole.correct.mean() == given.correct.mean()
    assert len(whole.subjects) == 300
    with pytest.raises(InvalidInput, match="two folds"):
        pool([fold(rows[:100], "a"), fold(rows[99:], "b")])
    with pytest.raises(InvalidInput, match="no predictions"):
        pool([])
    with pytest.raises(InvalidInput, match="test-time views"):
        pool([fold(rows[:100], "a"), replace(fold(rows[100:], "b"), views="flip")])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"logits": np.full((300, 4), np.nan, np.float32)}, "not finite"),
        ({"labels": np.full(300, -1)}, "without a label"),
    ],
)
def test_what_cannot_be_evaluated(changes: dict, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        evaluate(replace(made(), **changes))


def test_one_subject_is_told_and_not_taken_for_many() -> None:
    """As in a fold of leave-one-subject-out: no error at the end of a training run."""
    one = replace(made(subjects=True), subjects=("KA",) * 300)
    report, known, unknown = (evaluate(given, resamples=200) for given in (one, made(subjects=True), made()))
    assert report["intervals_over"] == "images of one subject"
    assert (known["intervals_over"], unknown["intervals_over"]) == ("subjects", "images")
    for name in ("accuracy_interval", "macro_f1_interval", "ece_interval", "nll_interval"):
        assert report[name] == unknown[name]
