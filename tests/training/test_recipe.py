"""Recipes as data: what the papers say is in them, and nothing that is not a setting."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch

from ferattn.data import CachedDataset
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice
from ferattn.training import Recipe, list_recipes, load_page, load_recipe, make_parts
from ferattn.training.folder import differences
from ferattn.training.module import make_optimizer
from ferattn.training.schedule import lr_factor
from training import faces


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_variant_and_dataset_is_valid(name: str) -> None:
    page = load_page(name)
    assert page.summary
    assert page.source
    assert bool(page.says) == (name not in ("strong", "finetune"))  # which are from no paper
    assert page.chose
    for dataset in ("fer2013", "ckplus", "jaffe", "folder"):
        for variant in (None, *page.variants):
            assert isinstance(page.recipe(dataset, variant), Recipe)


def test_what_the_papers_say() -> None:
    miskow = [load_recipe("miskow2022", kind) for kind in ("fer2013", "ckplus", "jaffe")]
    assert [one.batch_size for one in miskow] == [64, 16, 4]
    assert {(one.optimizer, one.lr, one.epochs, one.patience, one.stop_monitor, one.keep) for one in miskow} == {
        ("adam", 1e-4, 200, 15, "val_loss", "val_accuracy")
    }
    luo = load_recipe("luo2023", "fer2013")
    assert (luo.optimizer, luo.lr, luo.batch_size, luo.epochs, luo.patience, luo.schedule) == (
        "adam", 0.002, 64, 100, 16, "plateau",
    )  # fmt: skip
    assert luo.stop_monitor == luo.keep == "val_accuracy"
    assert load_recipe("luo2023", "fer2013", "as-published").select_on == "test"
    rates = {
        kind: [recipe.lr, *(recipe.lr * factor for factor in recipe.step_factors)]
        for kind in ("fer2013", "ckplus", "jaffe")
        for recipe in [load_recipe("chap2021", kind)]
    }
    assert rates["fer2013"] == pytest.approx([0.01, 0.001, 0.0001])
    assert rates["ckplus"] == pytest.approx([0.01, 0.005, 0.001])
    assert rates["jaffe"] == pytest.approx([0.05, 0.01, 0.005])
    chap = [load_recipe("chap2021", kind) for kind in rates]
    assert [(one.batch_size, one.epochs, one.optimizer) for one in chap] == [
        (512, 200, "adam"), (50, 200, "adam"), (14, 80, "sgd"),
    ]  # fmt: skip
    assert load_recipe("chap2021", "jaffe", "one-cycle").schedule == "one-cycle"
    assert load_recipe("finetune").pretrained


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"leraning_rate": 1}, UnknownChoice, "unknown key of a recipe 'leraning_rate'"),
        ({"optimizer": "adma"}, UnknownChoice, "did you mean 'adam'"),
        ({"lr": "fast"}, InvalidOption, "lr='fast'"),
        ({"lr": 0.0}, InvalidOption, "lr=0.0"),
        ({"epochs": True}, InvalidOption, "epochs=True"),
        ({"train_fraction": 0}, InvalidOption, "train_fraction=0.0"),
        ({"channels": 2}, InvalidOption, "channels=2"),
        ({"schedule": "steps"}, InvalidOption, "step_epochs"),
        ({"schedule": "steps", "step_epochs": [5, 3], "step_factors": [0.1, 0.1]}, InvalidOption, "rising"),
        ({"schedule": "steps", "step_epochs": ["a"], "step_factors": [0.1]}, InvalidOption, "list of numbers"),
        ({"step_epochs": [5], "step_factors": [0.1]}, InvalidOption, "only there"),
        ({"schedule": "plateau", "warmup_epochs": 2}, InvalidOption, "has none"),
        ({"epochs": 3, "warmup_epochs": 3}, InvalidOption, "fewer than the epochs"),
        ({"layer_decay": 0.5}, InvalidOption, "adamw"),
        ({"schedule": "steps", "step_epochs": [5], "step_factors": [-0.1]}, InvalidOption, "more than 0"),
    ],
)
def test_mistakes(changes: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        Recipe().changed(changes)


def test_recipes_survive_json_and_take_whole_numbers() -> None:
    for name in list_recipes():
        recipe = load_recipe(name, "fer2013")
        assert Recipe().changed(recipe.to_dict()) == recipe
    assert Recipe().changed({"lr": 1}).lr == 1.0
    assert {field.name for field in fields(Recipe)} == set(Recipe().to_dict())


def test_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(UnknownChoice, match="did you mean 'luo2023'"):
        load_recipe("luo2032")
    with pytest.raises(UnknownChoice, match="has none"):
        load_recipe("strong", variant="x")
    with pytest.raises(UnknownChoice, match="one-cycle"):
        load_recipe("chap2021", variant="onecycle")
    mine = tmp_path / "mine.toml"
    for text, error, said in (
        ("[settings]\nlr = 0.5\n", None, ""),
        ("[settings]\nrl = 0.5\n", UnknownChoice, "'rl'"),
        ("[setings]\nlr = 0.5\n", UnknownChoice, "did you mean 'settings'"),
        ("summary = 'x'\n", InvalidInput, "no table"),
        ("[settings", InvalidInput, r"mine\.toml"),
        ("dataset = 3\n[settings]\nlr = 0.5\n", InvalidInput, r"dataset = 3; a table"),
        ("says = 'x'\n[settings]\nlr = 0.5\n", InvalidInput, r"says = 'x'; a table"),
        ("[settings]\nlr = 0.5\n[dataset]\njaffe = 3\n", InvalidInput, r"dataset\.jaffe = 3; a table"),
        ("[settings]\nlr = 0.5\n[dataset.floder]\nlr = 7.0\n", UnknownChoice, "did you mean 'folder'"),
        ("[settings]\nlr = 0.5\n[dataset.folder]\nrl = 7.0\n", UnknownChoice, "'rl'"),
        ("[settings]\nlr = 0.5\n[variant.x]\nlr = -1\n", InvalidOption, "lr=-1"),
        ("[settings]\nlr = 0.5\n[variant.x]\nlayer_decay = 0.5\n", InvalidOption, "adamw"),
    ):
        mine.write_text(text)
        if error is None:
            assert load_recipe(str(mine)).lr == 0.5
        else:
            with pytest.raises(error, match=said):
                load_recipe(str(mine))
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_recipe(str(tmp_path / "none.toml"))


def test_what_shortened_runs_are_short_of() -> None:
    for name in list_recipes():
        assert load_recipe(name).never_reached() == []
    chap, strong = load_recipe("chap2021"), load_recipe("strong")
    assert "rate at 150 (step_epochs) never come" in chap.changed({"epochs": 150}).never_reached()[0]
    assert "rate at 100, 150" in chap.changed({"epochs": 20}).never_reached()[0]
    assert strong.changed({"epochs": 21}).never_reached() == []
    assert "no epoch is mixed (mix_off_epochs=20)" in strong.changed({"epochs": 20}).never_reached()[0]
    assert strong.changed({"epochs": 20, "augmentation": "luo2023"}).never_reached() == []


def test_settings_without_effect() -> None:
    """Each of them, changed, leaves the same run; what has an effect is not among them."""
    plain = Recipe().without_effect()
    assert sorted(plain) == [
        "lr_min", "mix_off_epochs", "momentum",
        "plateau_factor", "plateau_monitor", "plateau_patience", "stop_monitor",
    ]  # fmt: skip
    busy = Recipe(optimizer="sgd", schedule="plateau", patience=2, augmentation="strong")
    assert busy.without_effect() == {}
    assert "0.95 to 0.85" in Recipe(optimizer="sgd", schedule="one-cycle").without_effect()["momentum"]


def test_schedules_are_pytorchs() -> None:
    recipe = Recipe(schedule="cosine", epochs=6, warmup_epochs=2)
    ours = [lr_factor(recipe, step, 5) for step in range(30)]
    assert ours[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert ours[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 20)) for step in range(20)])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.1)
    steps = Recipe(schedule="steps", epochs=6, step_epochs=(2, 4), step_factors=(0.1, 0.01))
    for epoch in range(6):
        assert lr_factor(steps, 5 * epoch, 5) == pytest.approx(optimizer.param_groups[0]["lr"])
        assert lr_factor(steps, 5 * epoch + 4, 5) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()


def test_layer_decay_is_smaller_for_earlier_layers() -> None:
    model = timm.create_model("resnet18", num_classes=4)
    groups = make_optimizer(model, Recipe(optimizer="adamw", lr=0.1, layer_decay=0.5)).param_groups
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    order = [rate[id(layer)] for layer in (model.conv1.weight, model.layer1[0].conv1.weight, model.fc.weight)]
    assert order == sorted(order)
    assert order[-1] == pytest.approx(0.1)
    assert order[0] < 0.01


def test_optimizers_take_the_recipes_numbers() -> None:
    model = faces.network()
    sgd = make_optimizer(model, Recipe(optimizer="sgd", momentum=0.7, weight_decay=0.1, lr=0.3))
    assert isinstance(sgd, torch.optim.SGD)
    expected = {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.1, "nesterov": True}
    assert {key: sgd.param_groups[0][key] for key in expected} == expected
    assert isinstance(make_optimizer(model, Recipe(optimizer="adamw")), torch.optim.AdamW)
    assert isinstance(make_optimizer(model, Recipe(optimizer="adam")), torch.optim.Adam)


def test_parts_are_disjoint_and_repeat() -> None:
    data = faces.faces(200, 1)
    recipe = Recipe(split="random-80-20", validation_fraction=0.1, size=8)
    made = make_parts(data, recipe, seed=1)
    assert [len(part) for part in (made.train, made.validation, made.test)] == [144, 16, 40]
    assert len({*made.train.ids, *made.validation.ids, *made.test.ids}) == 200
    assert make_parts(data, recipe, seed=1).test.ids == made.test.ids != make_parts(data, recipe, seed=2).test.ids
    assert not made.honest
    limited = make_parts(data, recipe, limit=8)
    assert limited.train.counts() == dict.fromkeys(faces.CLASSES, 2)
    with pytest.raises(InvalidOption, match="limit=3"):
        make_parts(data, recipe, limit=3)


def test_a_share_that_somebody_asked_for_is_set_aside_or_refused() -> None:
    data = faces.faces(200, 1)
    fixed = Recipe(split="random-80-10-10", validation_fraction=0.2, size=8)
    said = (
        "validation_fraction=0.2 would change nothing.*select_on='validation', a part of the split 'random-80-10-10'"
    )
    with pytest.raises(InvalidOption, match=said):
        make_parts(data, fixed, asked=["epochs", "validation_fraction"])
    brought_along = make_parts(data, fixed, asked=["epochs"])
    assert [len(part) for part in (brought_along.train, brought_along.validation)] == [160, 20]
    followed = make_parts(data, fixed.changed({"select_on": "held-out"}), asked=["validation_fraction"])
    assert [len(part) for part in (followed.train, followed.validation)] == [128, 32]
    make_parts(data, fixed.changed({"validation_fraction": 0}), asked=["validation_fraction"])


def test_smaller_training_sets_are_part_of_larger_ones() -> None:
    data = faces.faces(400, 1)
    recipes = [
        Recipe(split="random-80-20", validation_fraction=0.1, size=8, train_fraction=share)
        for share in (0.1, 0.25, 0.5, 1.0)
    ]
    made = [make_parts(data, recipe, subset_seed=3) for recipe in recipes]
    assert [len(part.train) for part in made] == pytest.approx([28.8, 72, 144, 288], abs=2)
    whole = made[-1].train.counts()
    for part, recipe in zip(made, recipes, strict=True):
        assert part.train.counts() == {name: round(recipe.train_fraction * count) for name, count in whole.items()}
    for small, large in pairwise(made):
        assert set(small.train.ids) < set(large.train.ids)
        assert small.test.ids == large.test.ids
        assert small.validation.ids == large.validation.ids
    assert make_parts(data, recipes[0], subset_seed=4).train.ids != made[0].train.ids
    assert make_parts(data, recipes[0], subset_seed=3).train.ids == made[0].train.ids


def test_people_stay_on_one_side() -> None:
    data = faces.faces(200, 1, subjects=20)
    recipe = Recipe(split="subject-10-fold", validation_fraction=0.1, size=8)
    made = make_parts(data, recipe, fold=4)
    assert made.honest
    people = [set(part.subjects) for part in (made.train, made.validation, made.test)]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]
    assert make_parts(data, recipe, fold=5).test.ids != made.test.ids
    with pytest.raises(InvalidOption, match="fold"):
        make_parts(data, recipe, fold=10)


def test_the_merged_test_is_honest_where_training_images_choose_the_epoch() -> None:
    """On FER2013's both tests together: what is set aside from the training images is no test."""
    toy = faces.faces(200, 1)
    column = tuple("train" if row < 120 else "public" if row < 160 else "private" for row in range(200))
    data = CachedDataset("toy", replace(toy.records, parts=column), toy.images)
    recipe = Recipe(split="merged-test", validation_fraction=0.1, size=8)
    made = make_parts(data, recipe)
    assert [len(part) for part in (made.train, made.validation, made.test)] == [108, 12, 80]
    assert (made.honest, made.label) == (True, "toy test")
    chosen_on_it = make_parts(data, recipe.changed({"select_on": "test"}))
    assert (chosen_on_it.honest, chosen_on_it.label) == (False, "toy test (not honest)")


def test_parts_that_are_not_there() -> None:
    data = faces.faces(200, 1)
    with pytest.raises(InvalidOption, match="set validation_fraction"):
        make_parts(data, Recipe(split="random-80-20", size=8))
    with pytest.raises(UnknownChoice, match="random-80-20"):
        make_parts(data, Recipe(split="random-8020", size=8))
    with pytest.raises(UnknownChoice, match="part of random-80-20 'tset'"):
        make_parts(data, Recipe(split="random-80-20", test_on="tset", validation_fraction=0.1, size=8))
    same = make_parts(data, Recipe(split="random-80-20", select_on="test", size=8))
    assert same.test.ids == same.validation.ids
    assert not same.honest


def test_classes_without_training_images_are_told() -> None:
    data = faces.faces(200, 1)
    without = data.subset([row for row in range(200) if row % 4 != 2])
    with pytest.raises(InvalidInput, match="no training images of sad"):
        make_parts(without, Recipe(split="random-80-20", validation_fraction=0.1, size=8))


def test_differences_name_their_place() -> None:
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}, "c": 2}) == ["c was None, now 2"]


def test_the_page_says_what_the_files_say() -> None:
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "recipes.md").read_text(encoding="utf-8")
    for name in list_recipes():
        page = load_page(name)
        assert f"## {name}\n" in text
        assert all(f"- {topic}: {said}\n" in text for topic, said in (page.says | page.chose).items())
        tables = [page.settings, *page.datasets.values(), *page.variants.values()]
        assert all(f"| `{key}` | `{value!r}` |\n" in text for table in tables for key, value in table.items())


def test_the_recipe_in_the_guide_is_one(tmp_path: Path) -> None:
    guide = Path(__file__).parents[2] / "docs" / "training.md"
    (tmp_path / "mine.toml").write_text(guide.read_text().split("```toml\n")[1].split("```")[0])
    name = str(tmp_path / "mine.toml")
    assert load_page(name).summary == "short, for smiles"
    assert load_recipe(name) == Recipe(optimizer="adamw", lr=0.001, epochs=30)
    assert load_recipe(name, "jaffe", "long") == Recipe(optimizer="adamw", lr=0.001, epochs=90, batch_size=16)
