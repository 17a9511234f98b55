import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.trees import ck48_tree, fer_tree, jaffe_tree, toy
from ferattn.data import (
    FER2013,
    JAFFE,
    CKPlus,
    leave_one_subject_out,
    load_splits,
    make_splits,
    random_split,
    save_splits,
    subject_kfold,
)
from ferattn.data.groups import imbalance, stratified_groups
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice


def assert_partition(fold, n):
    rows = np.concatenate(list(fold.values()))
    assert sorted(rows.tolist()) == list(range(n))


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(20, 300), st.booleans())
def test_random_parts_cover_everything_once_and_have_their_share(seed, n, stratify):
    dataset = toy(n, side=1)
    shares = {"train": 0.8, "validation": 0.1, "test": 0.1}
    splits = random_split(dataset, shares, seed=seed, stratify=stratify)
    fold = splits.folds[0]
    assert_partition(fold, n)
    assert not splits.honest
    for name, share in shares.items():
        assert abs(len(fold[name]) - share * n) <= 1
    again = random_split(dataset, shares, seed=seed, stratify=stratify)
    assert all(np.array_equal(fold[name], again.folds[0][name]) for name in fold)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(30, 200))
def test_stratified_parts_have_each_class_in_proportion(seed, n):
    dataset = toy(n, side=1)
    fold = random_split(dataset, {"train": 0.8, "test": 0.2}, seed=seed, stratify=True).folds[0]
    for label in range(4):
        whole = (dataset.records.labels == label).sum()
        part = (dataset.records.labels[fold["test"]] == label).sum()
        assert abs(part - 0.2 * whole) <= 2


def test_the_seed_changes_the_split_and_bad_shares_are_refused():
    dataset = toy(100, side=1)
    shares = {"train": 0.8, "test": 0.2}
    a, b = (random_split(dataset, shares, seed=seed).folds[0]["test"].tolist() for seed in (0, 1))
    assert a != b
    for bad in ({"train": 0.8}, {}, {"train": 1.2, "test": -0.2}):
        with pytest.raises(InvalidOption, match="add up to 1"):
            random_split(dataset, bad)
    with pytest.raises(InvalidOption, match="test would be empty"):
        random_split(toy(2, side=1), {"train": 0.9, "test": 0.1})
    with pytest.raises(InvalidOption, match="seed=-1"):
        random_split(dataset, shares, seed=-1)


groupings = st.integers(4, 25).flatmap(
    lambda people: st.lists(st.tuples(st.integers(0, people - 1), st.integers(0, 3)), min_size=people, max_size=120)
)


@settings(deadline=None, max_examples=80)
@given(groupings, st.integers(2, 6), st.integers(0, 100))
def test_groups_stay_whole_no_fold_is_empty_and_nothing_near_is_better(members, k, seed):
    groups = [f"P{person}" for person, _ in members]
    labels = np.array([label for _, label in members])
    if len(set(groups)) < k:
        return
    folds = stratified_groups(labels, groups, k, seed=seed)
    assert set(folds.tolist()) == set(range(k))
    assert all(
        len({fold for fold, other in zip(folds, groups, strict=True) if other == name}) == 1 for name in groups
    )
    assert np.array_equal(folds, stratified_groups(labels, groups, k, seed=seed))

    def cost(assignment):
        totals = np.zeros((k, 5))
        np.add.at(totals, (assignment, labels), 1)
        totals[:, 4] = totals[:, :4].sum(1)
        return imbalance(totals)

    # Brute force: no move of one group and no exchange of two lowers the cost.
    best = cost(folds)
    names = sorted(set(groups))
    column = np.array(groups)
    where = {name: folds[column == name][0] for name in names}
    for a, b in itertools.combinations(names, 2):
        other = folds.copy()
        other[column == a], other[column == b] = where[b], where[a]
        assert cost(other) >= best - 1e-9
    for a in names:
        if sum(fold == where[a] for fold in where.values()) > 1:
            for target in range(k):
                other = folds.copy()
                other[column == a] = target
                assert cost(other) >= best - 1e-9


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_class_shares_are_far_more_even_than_by_chance(seed):
    generator = np.random.default_rng(seed)
    people = np.repeat(np.arange(118), generator.integers(1, 6, 118) * 3)  # as in CK+
    labels = np.repeat(generator.choice(7, len(people) // 3, p=[0.14, 0.06, 0.18, 0.08, 0.21, 0.08, 0.25]), 3)
    folds = stratified_groups(labels, people.astype(str), 10, seed=seed)
    by_chance = generator.integers(0, 10, 118)[people]

    def spread(assignment):
        totals = np.zeros((10, 7))
        np.add.at(totals, (assignment, labels), 1)
        return imbalance(totals)

    assert spread(folds) < 0.25 * spread(by_chance)  # about 0.05 usually


@pytest.mark.parametrize("validation", [False, True])
def test_ck_folds_are_disjoint_in_subjects_and_test_every_image_once(tmp_path, validation):
    dataset = CKPlus(ck48_tree(tmp_path))
    splits = subject_kfold(dataset, 5, seed=3, validation=validation)
    assert splits.honest
    assert len(splits) == 5
    tested = []
    for fold in splits.folds:
        assert list(fold) == ["train", *(["validation"] if validation else []), "test"]
        assert_partition(fold, len(dataset))
        people = [{dataset.subjects[row] for row in rows} for rows in fold.values()]
        assert all(not a & b for a, b in itertools.combinations(people, 2))
        tested += fold["test"].tolist()
    assert sorted(tested) == list(range(len(dataset)))
    parts = splits.apply(dataset, 1)
    assert parts["test"].ids == tuple(dataset.ids[row] for row in splits.folds[1]["test"])


def test_jaffe_leaves_one_subject_out(tmp_path):
    dataset = JAFFE(jaffe_tree(tmp_path))
    splits = leave_one_subject_out(dataset)
    assert len(splits) == 10
    left_out = [{dataset.subjects[row] for row in fold["test"]} for fold in splits.folds]
    assert [sorted(people) for people in left_out] == [[name] for name in sorted(set(dataset.subjects))]
    for fold, people in zip(splits.folds, left_out, strict=True):
        assert_partition(fold, 70)
        assert not people & {dataset.subjects[row] for row in fold["train"]}
    with_validation = leave_one_subject_out(dataset, validation=True)
    assert len({dataset.subjects[row] for row in with_validation.folds[9]["validation"]}) == 1


def test_impossible_splits_are_refused(tmp_path):
    people = toy(subjects=4)
    for k in (1, 5, 2.5):
        with pytest.raises(InvalidOption, match=rf"k={k}: from 2 to 4"):
            subject_kfold(people, k)
    with pytest.raises(InvalidOption, match="does not say who"):
        leave_one_subject_out(toy())
    with pytest.raises(InvalidOption, match="no official split"):
        make_splits("official", toy())
    with pytest.raises(UnknownChoice, match=r"split 'ofcial'; did you mean 'official'"):
        make_splits("ofcial", toy())
    with pytest.raises(InvalidOption, match="fold=3"):
        subject_kfold(people, 3).apply(people, 3)


def test_fer2013_official_and_merged(tmp_path):
    dataset = FER2013(fer_tree(tmp_path))
    assert {name: len(rows) for name, rows in make_splits("official", dataset).folds[0].items()} == {
        "private": 14,
        "public": 14,
        "train": 21,
    }
    merged = make_splits("merged-test", dataset)
    assert {name: len(rows) for name, rows in merged.folds[0].items()} == {"train": 21, "test": 28}
    assert not merged.honest
    assert make_splits("official", dataset).honest


def test_saved_splits_come_back_for_the_same_data_in_any_order(tmp_path):
    dataset = toy(subjects=7)
    splits = subject_kfold(dataset, 4, seed=2)
    path = tmp_path / "folds.json"
    save_splits(splits, dataset, path)
    again = load_splits(path, dataset)
    assert (again.scheme, again.honest, again.seed) == ("subject-4-fold", True, 2)
    for a, b in zip(splits.folds, again.folds, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    turned = dataset.subset(range(39, -1, -1))
    ids = {turned.ids[row] for row in load_splits(path, turned).folds[0]["test"]}
    assert ids == {dataset.ids[row] for row in splits.folds[0]["test"]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["folds.json"]


def test_splits_of_other_data_are_refused(tmp_path):
    dataset = toy(subjects=7)
    path = tmp_path / "folds.json"
    save_splits(leave_one_subject_out(dataset), dataset, path)
    with pytest.raises(InvalidInput, match=r"made for other data.*40 images of 'toy'.*39"):
        load_splits(path, dataset.subset(range(39)))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_file_of_splits_is_one_error(tmp_path_factory, data):
    dataset = toy(8, subjects=3, side=1)
    path = tmp_path_factory.mktemp("splits") / "folds.json"
    save_splits(leave_one_subject_out(dataset), dataset, path)
    content = json.loads(path.read_text())
    key = data.draw(st.sampled_from(["format", "sha256", "folds", "scheme"]))
    content[key] = data.draw(
        st.sampled_from([None, 3, "x", [], [[1]], [{"train": ["image-0000", "image-0000"]}], [{"train": ["nobody"]}]])
    )
    text = json.dumps(content)
    path.write_text(text if data.draw(st.booleans()) else text[: data.draw(st.integers(0, len(text)))])
    try:
        load_splits(path, dataset)
    except InvalidInput as error:
        message = str(error)
    else:
        message = "folds.json"
        assert key in ("scheme", "folds")
    assert "folds.json" in message


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    dataset = toy(subjects=3)
    path = tmp_path / "folds.json"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InvalidOption, match=r"folds\.json: cannot be written \(No space left"):
        save_splits(leave_one_subject_out(dataset), dataset, path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InvalidOption, match="cannot be written"):
        save_splits(leave_one_subject_out(dataset), dataset, tmp_path / "no/such/folder.json")
