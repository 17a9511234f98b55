"""Luo's CNN: the layers of the paper, attention before each pool, every option, timm's contract."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferattn import SE, attach, create_model
from ferattn.cnn import CNN
from ferattn.errors import InvalidOption


def test_the_layers_are_the_papers() -> None:
    kinds = {nn.Conv2d: "conv", nn.ReLU: "relu", nn.MaxPool2d: "pool"}
    model = CNN()
    assert " ".join(kinds[type(module)] for module in model.features) == " ".join(["conv relu conv relu pool"] * 3)
    widths = [module.out_channels for module in model.features if isinstance(module, nn.Conv2d)]
    assert widths == [32, 64, 128, 128, 256, 256]
    assert all(module.kernel_size == (3, 3) for module in model.features if isinstance(module, nn.Conv2d))
    assert model.forward_features(torch.randn(1, 1, 48, 48)).shape == (1, 256, 6, 6)


def test_attention_sits_before_each_pool() -> None:
    model = create_model("cnn_se")
    assert [(site.path, site.channels) for site in model.attention_sites] == [
        ("features.3.attention", 64),
        ("features.8.attention", 128),
        ("features.13.attention", 256),
    ]
    assert all(isinstance(model.features[index], nn.MaxPool2d) for index in (4, 9, 14))
    assert attach(CNN(), SE) == model.attention_sites


def test_every_option_does_something() -> None:
    x = torch.randn(2, 3, 64, 32)
    assert CNN(in_chans=3, num_classes=4, img_size=(64, 32))(x).shape == (2, 4)
    assert CNN(hidden=20).head_hidden_size == 20
    assert CNN(drop_rate=0.3).pre_logits.drop.p == 0.3
    assert CNN(drop_rate=0.3).head.drop.p == 0.3
    assert sum(isinstance(m, nn.ELU) for m in CNN(act_layer="elu").modules()) == 7
    for norm in (nn.BatchNorm2d, "batchnorm2d"):
        assert sum(isinstance(m, nn.BatchNorm2d) for m in CNN(norm_layer=norm).modules()) == 7
    larger = torch.randn(2, 1, 96, 96)
    torch.manual_seed(0)
    average = CNN(global_pool="avg")
    torch.manual_seed(0)
    peak = CNN(global_pool="max")
    assert not torch.equal(average(larger), peak(larger))


def test_a_norm_moves_no_tap() -> None:
    model = CNN(norm_layer=nn.BatchNorm2d).eval()
    maps = model.forward_intermediates(torch.randn(1, 1, 48, 48), intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 48, 48), (128, 24, 24), (256, 12, 12), (256, 6, 6)]
    assert [type(model.get_submodule(i["module"])) for i in model.feature_info] == [nn.ReLU] * 3 + [nn.MaxPool2d]


def test_indices_are_timms() -> None:
    model = CNN().eval()
    x = torch.randn(1, 1, 48, 48)
    last, maps = model.forward_intermediates(x, indices=2)
    assert [m.shape[-1] for m in maps] == [12, 6]
    assert torch.equal(last, maps[-1])
    assert [m.shape[-1] for m in model.forward_intermediates(x, [0, -1], intermediates_only=True)] == [48, 6]
    assert model.forward_intermediates(x, [0], stop_early=True)[0].shape[-1] == 48
    assert model.forward_intermediates(x, [0], stop_early=False)[0].shape[-1] == 6
    for bad in (0, 9, [4], [-5], []):
        with pytest.raises(InvalidOption, match="indices must name some of the 4 feature maps"):
            model.forward_intermediates(x, bad)
    with pytest.raises(InvalidOption, match="output_fmt must be 'NCHW'"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_pruning_drops_the_head_only_where_it_must() -> None:
    x = torch.randn(1, 1, 48, 48)
    model = CNN()
    assert model.prune_intermediate_layers([3], prune_head=False) == [3]
    assert model(x).shape == (1, 7)
    assert model.prune_intermediate_layers([1]) == [1]
    assert model.num_features == 128
    assert model(x).shape == (1, 128, 24, 24)
    assert model.num_classes == 0


def test_pruning_may_keep_the_head_only_of_the_whole_network() -> None:
    model = CNN()
    model.prune_intermediate_layers([1], prune_head=False)
    assert isinstance(model.pre_logits, nn.Identity)
    assert model.num_classes == 0


def test_a_block_behind_everything_is_in_every_path() -> None:
    model = CNN().eval()
    attach(model, SE, ["features"])
    x = torch.randn(2, 1, 48, 48)
    expected = model.forward_features(x)
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, expected)
    assert torch.equal(maps[-1], expected)
    model.set_grad_checkpointing()
    assert torch.equal(model.forward_features(x), expected)


def test_a_new_classifier_follows_the_models_dtype_and_mode() -> None:
    model = CNN().double().eval()
    model.reset_classifier(3)
    assert model.get_classifier().weight.dtype == torch.float64
    assert not model.head.training
    assert model(torch.randn(1, 1, 48, 48, dtype=torch.float64)).shape == (1, 3)


def test_pruning_takes_the_sites_away_that_it_cuts_off() -> None:
    model = create_model("cnn_se")
    sites = model.attention_sites
    assert len(sites) == 3
    model.prune_intermediate_layers([0, 1])
    assert model.attention_sites == sites[:2]
    model.prune_intermediate_layers([0])
    assert model.attention_sites == sites[:1]
