"""Batches of several processes: every image once an epoch, as many batches in each."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ferattn.data import AUGMENTATIONS, Batch, BatchTransform, CachedDataset, make_loader, make_mixer, make_transform
from ferattn.errors import InvalidOption
from ferattn.training import FaceClassifier, FaceData, MovingAverage, Plateau, predict
from ferattn.training.module import _fits, _seed, inverse_frequency
from training import faces


def data_of(rank: int, world: int, train: int, validation: int, batch_size: int) -> FaceData:
    data = FaceData(faces.faces(train, 1), faces.faces(validation, 2), batch_size=batch_size, seed=5)
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    data.setup("fit")
    return data


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(8, 70), st.integers(4, 60), st.integers(1, 3))
def test_each_image_goes_to_one_process(world: int, train: int, validation: int, share: int) -> None:
    batch_size = share * world
    processes = [data_of(rank, world, max(train, batch_size), validation, batch_size) for rank in range(world)]
    seen = [[batch.indices for batch in data.train_dataloader()] for data in processes]
    assert len({len(batches) for batches in seen}) == 1
    assert {len(batch) for batches in seen for batch in batches} <= {share}
    rows = torch.cat([batch for batches in seen for batch in batches]).tolist()
    assert len(rows) == len(set(rows)) > len(processes[0].train) - world * (share + 1)
    checked = [[batch.indices for batch in data.val_dataloader()] for data in processes]
    assert len({len(batches) for batches in checked}) == 1
    assert sorted(torch.cat([batch for batches in checked for batch in batches]).tolist()) == list(range(validation))


def test_a_step_sees_the_same_images_however_many_processes() -> None:
    alone = [set(batch.indices.tolist()) for batch in data_of(0, 1, 48, 8, 12).train_dataloader()]
    pair = [[batch.indices.tolist() for batch in data_of(rank, 2, 48, 8, 12).train_dataloader()] for rank in (0, 1)]
    assert alone == [set(a) | set(b) for a, b in zip(*pair, strict=True)]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*treespec")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval", "ignore:.*isinstance.treespec")
def test_any_trainer_fits_validates_tests_and_predicts(tmp_path: Path) -> None:
    """Lightning's own defaults: with its check of the validation before the first epoch."""
    parts, model = faces.parts(), faces.network()
    recipe = faces.recipe(epochs=4, schedule="plateau", ema_decay=0.9)
    task = FaceClassifier(model, make_transform(AUGMENTATIONS["none"], parts.train), recipe)
    data = FaceData(parts.train, parts.validation, batch_size=16)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    averaged = MovingAverage(recipe.ema_decay)
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", default_root_dir=tmp_path, callbacks=[Plateau(recipe), averaged], **quiet
    )
    trainer.fit(task, data)
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= trainer.callback_metrics.keys()
    [validated] = trainer.validate(task, data, verbose=False)
    assert validated.keys() == {"val_loss", "val_accuracy"}
    [tested] = trainer.test(task, make_loader(parts.test, 16), verbose=False)
    logits = torch.cat(trainer.predict(task, make_loader(parts.test, 16)))
    expected = predict(model, task.transform, parts.test, name="test")
    torch.testing.assert_close(logits, torch.from_numpy(expected.logits))
    assert tested["test_accuracy"] == pytest.approx(float(expected.correct.mean()))
    assert tested["test_loss"] == pytest.approx(float(expected.nll().mean()), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*treespec")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval", "ignore:.*isinstance.treespec")
def test_validation_alone_has_nothing_of_a_training_that_was_broken_off(tmp_path: Path) -> None:
    parts, quiet = faces.parts(), {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    task = FaceClassifier(faces.network(), make_transform(AUGMENTATIONS["none"], parts.train), faces.recipe())
    data = FaceData(parts.train, parts.validation, batch_size=16)
    trainer = pl.Trainer(max_steps=3, val_check_interval=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(task, data)
    [found] = trainer.validate(task, data, verbose=False)
    assert found.keys() == {"val_loss", "val_accuracy"}
    with torch.no_grad():
        next(task.model.parameters()).fill_(float("nan"))
    [found] = trainer.validate(task, data, verbose=False)
    assert math.isnan(found["val_loss"])  # told, and no training is there to be stopped


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(InvalidOption, match="not divisible by the 2 processes"):
        data_of(0, 2, 30, 8, 9)
    with pytest.raises(InvalidOption, match="only 30 training images"):
        data_of(0, 1, 30, 8, 31)
    with pytest.raises(InvalidOption, match="only 4 validation images"):
        data_of(0, 5, 30, 4, 5)
    with pytest.raises(InvalidOption, match="make_loader"):
        FaceData(faces.faces(8, 1), faces.faces(8, 2), batch_size=2).train_dataloader()


def test_evaluation_batches_are_filled_up_for_a_compiled_model() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return x.flatten(1)[:, :4]

    transform = BatchTransform(AUGMENTATIONS["none"])
    task = FaceClassifier(Spy(), transform, faces.recipe(), fixed_batches=True).eval()
    images = torch.randn(5, 1, 8, 8)
    assert torch.equal(task(images), images.flatten(1)[:, :4])
    assert torch.equal(task(images[:3]), images[:3].flatten(1)[:, :4])
    task.train()(images[:2])
    FaceClassifier(Spy(), transform, faces.recipe()).eval()(images[:3])
    assert seen == [5, 5, 2, 3]


@pytest.mark.parametrize("augmentation", ["strong", "chap2021"])
def test_pictures_are_made_in_full_precision_whatever_the_run_has(augmentation: str) -> None:
    data = faces.faces(16, 1, side=16)
    transform = make_transform(augmentation, data, seed=3)
    task = FaceClassifier(faces.network(), transform, faces.recipe(), mixer=make_mixer(augmentation, 4, seed=3))
    batch = Batch(data.images, data.labels, torch.arange(16))
    for training in (True, False):
        task.train(training)
        wanted = task.pictures(batch)
        with torch.autocast("cpu", torch.bfloat16):
            found = task.pictures(batch)
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
        assert found[0].dtype == torch.float32
    assert torch.equal(found[0], transform.eval()(data.images))


def test_images_go_to_the_gpu_only_if_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [faces.faces(30, 1), faces.faces(10, 2)]
    size = sum(part.images.nbytes for part in parts)
    for free, fits in ((4 * size + 8, True), (4 * size, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        assert _fits(parts, torch.device("cuda")) == fits
        moved = []
        monkeypatch.setattr(CachedDataset, "to", lambda part, device, moved=moved: moved.append(part) or part)
        for workers in (0, 2):
            data = FaceData(*parts, batch_size=5, workers=workers)
            data.trainer = SimpleNamespace(
                global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=torch.device("cuda"))
            )
            data.setup("fit")
        assert len(moved) == (2 if fits else 0)


def test_the_seed_of_a_step_is_torchs() -> None:
    _seed(12, torch.device("cpu"))
    drawn = torch.rand(3)
    torch.manual_seed(12)
    assert torch.equal(drawn, torch.rand(3))


def test_rare_classes_weigh_more() -> None:
    weights = inverse_frequency({"a": 10, "b": 30, "c": 60})
    counts = torch.tensor([10.0, 30.0, 60.0])
    assert (weights * counts).tolist() == pytest.approx([100 / 3] * 3)


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(tmp_path) -> None:
    from ferattn.training import Machine, fit

    made = [
        fit(faces.network(), faces.parts(), faces.recipe(ema_decay=0.5), tmp_path / str(on),
            machine=Machine(accelerator="cpu", compile=on))
        for on in (False, True)
    ]  # fmt: skip
    assert made[0].results["test"]["nll"] == pytest.approx(made[1].results["test"]["nll"], rel=1e-2)
    assert made[1].config["machine"]["compile"]
