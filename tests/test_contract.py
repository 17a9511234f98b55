"""What timm's own model tests ask of a model, asked of every first-class backbone with every block.

Shapes are checked without numbers (``hollow``); numbers on two 48-pixel pictures.
"""

from __future__ import annotations

import copy
import re
from itertools import product
from typing import Any

import pytest
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2

from ferattn import create_model
from ferattn.attention import ATTENTION
from ferattn.backbones import BACKBONES
from ferattn.shapes import shapes_only
from hollow import hollow

NAMES = ["_".join(filter(None, parts)) for parts in product(BACKBONES, (None, *ATTENTION))]
SMALL = ["resnet18_cbam", "resnet50_eca", "resnet26t_se", "resnetv2_18_se", "resnetv2_50_cbam", "resnetv2_50x1_bit"]
NORMED = ["cnn_cbam", "vgg16_se"]
MODELS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    *((name, {"stem": "small"}) for name in SMALL),
    *((name, {"norm_layer": "batchnorm2d"}) for name in NORMED),
]
LEVELS = {"cnn": 4, "vgg": 6, "resnet": 5}


def _every_model(slow: str = "(?!)") -> pytest.MarkDecorator:
    """A test for each model; those whose names match are for the slow tests."""
    cases = [
        pytest.param(
            name,
            options,
            id="-".join((name, *options.values())),
            marks=[pytest.mark.slow] if re.search(slow, name) else [],
        )
        for name, options in MODELS
    ]
    return pytest.mark.parametrize(("name", "options"), cases)


every_model = _every_model()
# The deepest are the same blocks more often, and take seconds each to compute.
every_model_computed = _every_model(slow="101|152")


def _meta(name: str, **options: Any) -> Any:
    with shapes_only():
        return create_model(name, **options)


def _picture(channels: int = 1, size: int = 48) -> torch.Tensor:
    return torch.zeros(1, channels, size, size)


@every_model_computed
def test_numbers_forward_backward_and_intermediates(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model: Any = create_model(name, **options)
    model.eval()
    x = torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        features = model.forward_features(x)
        logits = model(x)
        assert logits.shape == (2, 7)
        assert not logits.isnan().any()
        torch.testing.assert_close(model.forward_head(features), logits, rtol=1e-4, atol=1e-5)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        last, maps = model.forward_intermediates(x)
        torch.testing.assert_close(last, features, rtol=1e-4, atol=1e-5)
        assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
        alone = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(alone[0], maps[1], rtol=1e-4, atol=1e-5)
    model.train()
    model(x).square().mean().backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert not [key for key, gradient in gradients.items() if gradient is None]
    assert not [key for key, gradient in gradients.items() if gradient.isnan().any()]


@every_model
@torch.no_grad()
def test_features_have_no_classifier_left_in_them(name: str, options: dict[str, Any]) -> None:
    model = hollow(name, **options)
    x = _picture()
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features
    assert model.num_classes == 7
    config = model.pretrained_cfg
    state = model.state_dict()
    assert f"{config['first_conv']}.weight" in state
    assert f"{config['classifier']}.weight" in state
    assert config["classifier"] in dict(model.named_modules())
    assert model.get_classifier().weight.shape[0] == 7
    model.reset_classifier(0)
    assert model(x).shape == (1, model.head_hidden_size)
    assert f"{config['classifier']}.weight" not in model.state_dict()
    model.reset_classifier(0, "")
    assert model(x).ndim == 4
    model.reset_classifier(5, "avg")
    assert model(x).shape == (1, 5)
    bare = hollow(name, **options, num_classes=0)
    assert bare(x).shape == (1, model.head_hidden_size)
    assert f"{config['classifier']}.weight" not in bare.state_dict()
    unpooled = hollow(name, **options, num_classes=0, global_pool="")(x)
    assert unpooled.ndim == 4


@every_model
@torch.no_grad()
def test_features_only_has_the_channels_and_reductions_it_says(name: str, options: dict[str, Any]) -> None:
    size, whole = 96, _meta(name, **options)
    levels = next(levels for family, levels in LEVELS.items() if name.startswith(family))
    for channels, chosen, count in ((1, {}, levels), (3, {"out_indices": (1, 2)}, 2)):
        model = hollow(name, **options, **chosen, features_only=True, in_chans=channels, img_size=size)
        maps = model(_picture(channels, size))
        assert len(maps) == count
        assert [m.shape[1] for m in maps] == model.feature_info.channels()
        assert [size // m.shape[-1] for m in maps] == model.feature_info.reduction()
        assert str(model.spec) == name
        for site in model.attention_sites:
            assert type(model.get_submodule(site.path)) is ATTENTION[model.spec.attention]
        if channels == 1:
            assert len(model.attention_sites) == len(whole.attention_sites)


@every_model
def test_layers_are_grouped_with_their_attention(name: str, options: dict[str, Any]) -> None:
    model = _meta(name, **options)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(groups) == {key for key, _ in model.named_parameters()}
        for site in model.attention_sites:
            block = model.get_submodule(site.path)
            parent = site.path.rpartition(".drop_path")[0] or site.path.rpartition(".")[0]
            around = {
                groups[key] for key in groups if key.startswith(f"{parent}.") and not key.startswith(f"{site.path}.")
            }
            own = {groups[f"{site.path}.{key}"] for key, _ in block.named_parameters()}
            assert len(own) == 1
            assert not around or own == around


@every_model
@torch.no_grad()
def test_pruning_keeps_what_the_indices_need(name: str, options: dict[str, Any]) -> None:
    model = hollow(name, **options)
    x = _picture()
    expected = model.forward_intermediates(x, indices=[1, 2], intermediates_only=True)
    model.prune_intermediate_layers([1, 2])
    maps = model.forward_intermediates(x, indices=[1, 2], intermediates_only=True)
    assert [m.shape for m in maps] == [m.shape for m in expected]


@pytest.mark.parametrize("name", ["cnn_cbam", "resnet18_eca", "resnetv2_18_cbam", "resnetv2_50_se"])
def test_gradient_checkpointing_changes_nothing_but_memory(name: str) -> None:
    torch.manual_seed(0)
    model: Any = create_model(name)
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    x = torch.randn(2, 1, 48, 48)
    out, expected = twin(x), model(x)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    for parameter, of_twin in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(of_twin.grad, parameter.grad)


def test_vgg_refuses_gradient_checkpointing_as_timms_does() -> None:
    with pytest.raises(AssertionError, match="gradient checkpointing not supported"):
        _meta("vgg16_se").set_grad_checkpointing()


@pytest.mark.parametrize("name", ["cnn_cbam", "vgg16_se", "resnet18_cbam_elu", "resnetv2_50_eca"])
def test_layer_decay_optimizers_take_every_parameter(name: str) -> None:
    model = create_model(name)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert len(scales) > 3
    assert max(scales) == 1.0


@pytest.mark.parametrize("name", ["cnn_cbam", "vgg16_se", "resnet18_cbam_elu", "resnetv2_18_eca_selu"])
@pytest.mark.parametrize(("size", "channels"), [(48, 1), (80, 3)])
def test_small_ones_learn_at_both_sizes(name: str, size: int, channels: int) -> None:
    torch.manual_seed(0)
    model = create_model(name, img_size=size, in_chans=channels)
    x = torch.randn(4, channels, size, size)
    target = torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
