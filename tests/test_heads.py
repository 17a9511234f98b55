"""The fitted head: the same numbers as flattening, and as timm's stretched one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ferattn import create_model
from ferattn.errors import InvalidOption
from ferattn.heads import FittedHead, fold_stretch
from ferattn.shapes import shapes_only


def test_it_is_flattening_and_linear_layers() -> None:
    head = FittedHead(5, 11, 13, kernel=(2, 3), drop_rate=0.0, act=nn.ELU)
    x = torch.randn(4, 5, 2, 3)
    hidden = F.elu(F.linear(x.flatten(1), head.fc1.weight.flatten(1), head.fc1.bias))
    expected = F.elu(F.linear(hidden, head.fc2.weight.flatten(1), head.fc2.bias))
    torch.testing.assert_close(head(x).flatten(1), expected)
    assert FittedHead(5, 11, None, kernel=(2, 3), drop_rate=0.0)(x).shape == (4, 11, 1, 1)


def test_a_norm_sits_between_the_first_layer_and_its_activation() -> None:
    head = FittedHead(5, 11, None, kernel=(2, 2), drop_rate=0.0, norm_layer=nn.BatchNorm2d)
    x = torch.randn(64, 5, 2, 2) + 3
    hidden = F.batch_norm(F.linear(x.flatten(1), head.fc1.weight.flatten(1)), None, None, training=True)
    torch.testing.assert_close(head(x).flatten(1), F.relu(hidden))
    plain = FittedHead(5, 11, None, kernel=(2, 2), drop_rate=0.0)
    assert set(head.state_dict()) - set(plain.state_dict()) == {key for key in head.state_dict() if "norm1" in key}


def test_dropout_is_honoured() -> None:
    head = FittedHead(5, 200, None, kernel=(1, 1), drop_rate=0.5)
    out = head(torch.randn(8, 5, 1, 1))
    assert (out == 0).float().mean() > 0.6  # half by the ReLU, half of the rest by dropout
    assert head.eval()(torch.randn(8, 5, 1, 1)).eq(0).float().mean() < 0.6


def test_other_sizes_than_its_own_work() -> None:
    head = FittedHead(5, 11, None, kernel=(2, 2), drop_rate=0.0)
    assert head(torch.randn(1, 5, 4, 3)).shape == (1, 11, 3, 2)
    x = torch.randn(1, 5, 1, 1)
    torch.testing.assert_close(head(x), head(x.expand(1, 5, 2, 2)))
    wide = torch.randn(1, 5, 1, 3)
    torch.testing.assert_close(head(wide), head(wide.expand(1, 5, 2, 3)))


@settings(deadline=None, max_examples=40)
@given(h=st.integers(1, 7), w=st.integers(1, 7), big_h=st.integers(7, 9), big_w=st.integers(7, 9))
def test_folding_the_stretch_loses_nothing(h: int, w: int, big_h: int, big_w: int) -> None:
    weight = torch.randn(3, 2, big_h, big_w, dtype=torch.float64)
    x = torch.randn(2, 2, h, w, dtype=torch.float64)
    stretched = F.conv2d(F.adaptive_avg_pool2d(x, (big_h, big_w)), weight)
    torch.testing.assert_close(F.conv2d(x, fold_stretch(weight, (h, w))), stretched)


@pytest.mark.parametrize(
    ("size", "cells"), [(32, 1), (48, 2), (64, 2), (80, 2), (96, 3), (112, 3), (128, 4), (224, 7), (448, 7)]
)
def test_how_sizes_round_in_vgg(size: int, cells: int) -> None:
    with shapes_only():
        model = create_model("vgg16", img_size=size)
        assert model.pre_logits.kernel == (cells, cells)
        assert model(torch.empty(2, 1, size, size)).shape == (2, 7)
        if size < 448:
            assert model.forward_features(torch.empty(2, 1, size, size)).shape[2:] == (cells, cells)


def test_the_papers_parameter_counts() -> None:
    with shapes_only():
        for size in (48, 80):
            counts = {
                name: sum(p.numel() for p in create_model(name, img_size=size).parameters())
                for name in ("vgg16_elu", "vgg16_se_elu", "vgg19_elu")
            }
            assert {name: round(count / 1e6, 2) for name, count in counts.items()} == {
                "vgg16_elu": 39.92,
                "vgg16_se_elu": 39.95,
                "vgg19_elu": 45.23,
            }


def test_pictures_need_not_be_square() -> None:
    with shapes_only():
        model = create_model("vgg16_bn", img_size=(48, 80))
        assert model.pre_logits.kernel == (2, 3)  # the last pool rounds up for both sides or for none
        assert model(torch.empty(2, 1, 48, 80)).shape == (2, 7)


@pytest.mark.parametrize(("name", "size", "smallest"), [("vgg16", 31, 32), ("resnet50", 16, 32), ("cnn", 7, 8)])
def test_too_small_a_picture_is_refused(name: str, size: int, smallest: int) -> None:
    with pytest.raises(InvalidOption, match=f"img_size must be at least {smallest} pixels on a side for {name}"):
        create_model(name, img_size=size)


@pytest.mark.parametrize("act", [nn.ELU, "elu", partial(nn.ELU, alpha=0.5)])
def test_the_head_of_a_vgg_has_the_backbones_activation(act: object) -> None:
    with shapes_only():
        model = create_model("vgg11", act_layer=act)
    acts = [module for module in model.modules() if isinstance(module, nn.ELU)]
    assert len(acts) == 10
    assert {module.alpha for module in acts} == {0.5 if isinstance(act, partial) else 1.0}
    assert all(isinstance(module.alpha, float) for module in acts)
