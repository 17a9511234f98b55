"""Teachers: what they are shown, what they answer, and what a student learns from it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ferattn.data import AUGMENTATIONS, ZCA, BatchTransform, CachedDataset, Standardize, make_transform
from ferattn.errors import InvalidOption
from ferattn.training import FaceClassifier, Machine, RunFolder, Teacher, Teachers, fit
from ferattn.training.teaching import distillation_loss
from training import faces
from training.test_fitting import _interrupt, _Killed, same

CPU = Machine(accelerator="cpu")
ORIGIN = {"sha256": "0" * 64, "config": None, "given_away": False}


def transform(normalize: nn.Module | None = None, size: int | None = None) -> BatchTransform:
    return BatchTransform(AUGMENTATIONS["none"], normalize, size=size).eval()


def teacher(model: nn.Module | None = None, **changes: Any) -> Teacher:
    about: dict[str, Any] = {
        "model": faces.network() if model is None else model,
        "transform": transform(),
        "classes": faces.CLASSES,
        "size": (8, 8),
        "channels": 1,
        "name": "runs/first",
        "origin": ORIGIN,
    }
    return Teacher(**about | changes)


@settings(deadline=None)
@given(st.integers(0, 999), st.floats(0.3, 8))
def test_the_loss_is_the_divergence_times_the_temperature_squared(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, others = (3 * torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (x.div(temperature).exp() / x.div(temperature).exp().sum(1, keepdim=True) for x in (others, logits))
    wanted = temperature**2 * (p * (p.log() - q.log())).sum() / 5
    torch.testing.assert_close(distillation_loss(logits, p, temperature), wanted)
    logits.requires_grad_()
    distillation_loss(logits, p, temperature).backward()
    torch.testing.assert_close(logits.grad, temperature * (q - p) / 5)  # Hinton et al., eq. 2, times T^2


@pytest.mark.parametrize("own", [None, Standardize((0.4,), (0.2,))])
@pytest.mark.parametrize("theirs", [None, Standardize((0.5,), (0.3,))])
def test_teachers_see_the_students_pictures_with_their_own_scaling(own: Any, theirs: Any) -> None:
    images = faces.faces(6, 1).images
    member = teacher(transform=transform(theirs))
    answers = Teachers([member], faces.CLASSES, channels=1)(transform(own)(images), transform(own), 2.0)
    wanted = (member.model(member.transform(images)) / 2).softmax(1)
    torch.testing.assert_close(answers, wanted, rtol=1e-4, atol=1e-5)
    assert not answers.requires_grad


def test_a_larger_teacher_in_colour_sees_them_enlarged() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.flatten(1)[:, :4]

    images = faces.faces(6, 1).images
    normalize = Standardize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    member = teacher(Spy(), transform=transform(normalize, size=20), size=(20, 20), channels=3)
    Teachers([member], faces.CLASSES, channels=1)(transform()(images), transform(), 1.0)
    torch.testing.assert_close(seen[0], member.transform(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_answers_are_the_mean_in_the_students_order_of_classes() -> None:
    one, other = teacher(), teacher(faces.network(seed=1), classes=("neutral", "sad", "angry", "happy"))
    classes = ("sad", "happy", "angry")
    images = transform()(faces.faces(6, 1).images)
    logits = (one.model(images)[:, [2, 1, 0]], other.model(images)[:, [1, 3, 2]])
    wanted = torch.stack([(part / 3).softmax(1) for part in logits]).mean(0)
    torch.testing.assert_close(Teachers([one, other], classes, channels=1)(images, transform(), 3.0), wanted)


def test_teachers_are_no_part_of_the_student_and_stay_as_they_are() -> None:
    model = faces.network(norm=True, dropout=0.5).train()
    before = deepcopy(model.state_dict())
    teachers = Teachers([teacher(model)], faces.CLASSES, channels=1)
    student = FaceClassifier(faces.network(), transform(), faces.recipe(), teachers=teachers)
    assert (
        student.state_dict().keys()
        == FaceClassifier(faces.network(), transform(), faces.recipe()).state_dict().keys()
    )
    assert deepcopy(student).teachers is teachers
    assert not model.training
    images = transform()(faces.faces(8, 1).images)
    assert torch.equal(teachers(images, transform(), 1.0), teachers(images, transform(), 1.0))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Next(nn.Module):
    """Says with certainty that a face of one class is of the next."""

    def forward(self, images: Tensor) -> Tensor:
        quarters = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return 50 * nn.functional.one_hot((quarters.argmax(1) + 1) % 4, 4).to(images.dtype)


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "clip_norm": 5.0}])
def test_a_student_learns_from_labels_and_teachers_as_they_weigh(tmp_path: Path, changes: dict[str, Any]) -> None:
    given = faces.parts()
    for weight, shift in ((0.05, 0), (1.0, 1)):
        validation = given.validation  # with the labels that are to be learnt: they choose the epoch
        records = replace(validation.records, labels=(validation.records.labels + shift) % 4)
        parts = replace(given, validation=CachedDataset("toy", records, validation.images))
        recipe = faces.recipe(epochs=6, distill_weight=weight, **changes)
        taught = Teachers([teacher(Next())], faces.CLASSES, channels=1)
        folder = fit(faces.network(), parts, recipe, tmp_path / str(weight), machine=CPU, teachers=taught)
        test = folder.predictions("test")
        assert (test.logits.argmax(1) == (test.labels + shift) % 4).mean() > 0.8
        assert folder.config["teachers"] == [ORIGIN]


def test_temperature_changes_what_is_learnt(tmp_path: Path) -> None:
    losses = set()
    for temperature in (1.0, 4.0):
        taught = Teachers([teacher()], faces.CLASSES, channels=1)
        recipe = faces.recipe(epochs=1, distill_temperature=temperature)
        folder = fit(faces.network(seed=2), faces.parts(), recipe, tmp_path / str(temperature), machine=CPU,
                     teachers=taught)  # fmt: skip
        losses.add(np.genfromtxt(folder.path / "metrics.csv", delimiter=",", names=True)["train_loss"].item())
    assert len(losses) == 2


def test_a_run_is_not_resumed_with_other_teachers(tmp_path: Path) -> None:
    def taught(sha256: str) -> Teachers:
        return Teachers([teacher(origin=ORIGIN | {"sha256": sha256})], faces.CLASSES, channels=1)

    recipe = faces.recipe(epochs=1)
    fit(faces.network(), faces.parts(), recipe, tmp_path / "run", machine=CPU, teachers=taught("a"))
    assert RunFolder(tmp_path / "run").config["teachers"][0]["sha256"] == "a"
    for other, said in ((taught("b"), "teachers.0.sha256 was 'a', now 'b'"), (None, "teachers was .* now None")):
        with pytest.raises(InvalidOption, match=said):
            fit(faces.network(), faces.parts(), recipe, tmp_path / "run", machine=CPU, teachers=other)


def test_an_interrupted_student_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def student(out: str) -> RunFolder:
        taught = Teachers([teacher(faces.network(seed=3, norm=True))], faces.CLASSES, channels=1)
        recipe = faces.recipe(epochs=4, ema_decay=0.9)
        model = faces.network(norm=True, dropout=0.3)
        return fit(model, faces.parts(), recipe, tmp_path / out, machine=CPU, teachers=taught)

    whole = student("whole")
    with monkeypatch.context() as patch:
        _interrupt(patch, "last.ckpt", 2)
        with pytest.raises(_Killed):
            student("cut")
    assert not RunFolder(tmp_path / "cut").finished
    assert same(whole, student("cut"))


def test_what_cannot_be_taught_is_told() -> None:
    with pytest.raises(InvalidOption, match="at least one"):
        Teachers([], faces.CLASSES, channels=1)
    with pytest.raises(InvalidOption, match="runs/first does not know fear; it knows angry, happy, sad, surprise"):
        Teachers([teacher()], ("angry", "fear"), channels=1)
    with pytest.raises(InvalidOption, match="sees grey pictures and the student colour"):
        Teachers([teacher()], faces.CLASSES, channels=3)
    whitened = make_transform("chap2021", faces.faces(16, 1))
    assert isinstance(whitened.normalize, ZCA)
    with pytest.raises(InvalidOption, match="the teacher runs/first sees ZCA-whitened"):
        Teachers([teacher(transform=whitened)], faces.CLASSES, channels=1)
    taught = Teachers([teacher()], faces.CLASSES, channels=1)
    with pytest.raises(InvalidOption, match="the student sees ZCA-whitened"):
        FaceClassifier(faces.network(), whitened, faces.recipe(), teachers=taught)
