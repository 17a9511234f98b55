import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.trees import fer_tree, noise, png, toy, write
from ferattn.data import (
    AUGMENTATIONS,
    FER2013,
    Batch,
    BatchTransform,
    ImageFolder,
    SeededSampler,
    cache,
    make_loader,
)
from ferattn.errors import InvalidInput, InvalidOption


@given(st.integers(1, 200), st.integers(1, 5), st.integers(0, 2**32), st.integers(0, 100))
def test_processes_share_an_epoch_evenly_and_without_overlap(n, world, seed, epoch):
    orders = []
    for rank in range(world):
        sampler = SeededSampler(n, shuffle=True, seed=seed, rank=rank, world=world)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert len(orders[-1]) == len(sampler) == n // world
    seen = [index for order in orders for index in order]
    assert len(set(seen)) == len(seen)
    in_order = [list(SeededSampler(n, shuffle=False, rank=rank, world=world)) for rank in range(world)]
    assert sorted(index for order in in_order for index in order) == list(range(n))


def test_the_order_changes_with_seed_and_epoch_only():
    def order(seed, epoch):
        sampler = SeededSampler(50, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    with pytest.raises(InvalidOption, match="rank"):
        SeededSampler(5, shuffle=True, rank=2, world=2)


def test_cached_and_lazy_datasets_give_the_same_batches(tmp_path):
    lazy = FER2013(fer_tree(tmp_path))
    batches = [list(make_loader(dataset, 10, shuffle=True, seed=3)) for dataset in (lazy, cache(lazy))]
    assert len(batches[0]) == len(batches[1]) == 5
    for a, b in zip(*batches, strict=True):
        assert isinstance(a, Batch)
        assert isinstance(b, Batch)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert len(list(make_loader(lazy, 10, drop_last=True))) == 4
    indices = torch.cat([batch.indices for batch in make_loader(lazy, 10)])
    assert indices.tolist() == list(range(49))


def test_workers_change_nothing_over_several_epochs():
    dataset = toy(30)
    transform = BatchTransform(AUGMENTATIONS["strong"], seed=5)
    results = []
    for workers in (0, 2):
        loader = make_loader(dataset, 8, shuffle=True, seed=1, workers=workers, transform=transform)
        images = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            images += [batch.images for batch in loader]
        results.append(torch.cat(images))
    assert torch.allclose(*results, atol=1e-5)
    assert not torch.allclose(results[0][:30].sum(), results[0][30:].sum(), rtol=1e-6)


def test_bad_options(tmp_path):
    for options in ({"batch_size": 0}, {"batch_size": 1, "workers": -1}):
        with pytest.raises(InvalidOption, match="batch_size"):
            make_loader(toy(), **options)
    with pytest.raises(InvalidOption, match="no batch would be left"):
        make_loader(toy(), 41, drop_last=True)
    write(tmp_path / "a/1.png", png(noise(0, 4, 4)))
    write(tmp_path / "a/2.png", png(noise(0, 4, 5)))
    with pytest.raises(InvalidInput, match="different shapes in one batch"):
        list(make_loader(ImageFolder(tmp_path), 2))
