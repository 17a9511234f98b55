"""Folded norms: the same outputs, the keys of the network without norms, and nothing folded that must not be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ferattn import CBAM, attach, create_model, fold_norms
from ferattn.backbones import BACKBONES
from ferattn.cnn import CNN
from ferattn.errors import InvalidOption
from ferattn.residual import explain

NORM = {"norm_layer": nn.BatchNorm2d}
SMALL = ("cnn", "resnet18", "resnetv2_18")


def _drawn(name: str, *, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A model in eval mode whose norms have statistics and weights of all sizes and signs."""
    torch.manual_seed(0)
    backbone = name.partition("_")[0]
    if backbone in ("vgg16", "vgg19"):
        name = name.replace(backbone, f"{backbone}_bn")
    if backbone == "cnn":
        options = NORM | options
    if name.endswith("cbam"):
        options = {"attention_options": {"spatial": "norm"}} | options
    model = create_model(name, **options).to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.4, 0.2)  # much larger ones make deep networks chaotic
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def _norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def _left(name: str) -> int:
    """Norms of a ResNetV2 behind an addition, and the last one: nothing can take those."""
    blocks = {"18": 8, "34": 16, "50": 16, "101": 33, "152": 50}
    return blocks[name.split("_")[1]] + 1 if name.startswith("resnetv2") else 0


@pytest.mark.parametrize("activation", ["", "_elu", "_selu"])
@pytest.mark.parametrize("attention", ["", "_se", "_eca", "_cbam"])
@pytest.mark.parametrize(
    "backbone", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
)
def test_the_outputs_stay(backbone: str, attention: str, activation: str) -> None:
    model = _drawn(f"{backbone}{attention}{activation}")
    x = torch.randn(1, 1, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        expected, maps = model(x), model.forward_intermediates(x, intermediates_only=True)
        before = _norms(model)
        assert fold_norms(model) == before - _left(backbone) > 0
        assert _norms(model) == _left(backbone)
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
        again = model.forward_intermediates(x, intermediates_only=True)
        torch.testing.assert_close(again, maps, rtol=1e-8, atol=1e-8)
    assert fold_norms(model) == 0


@pytest.mark.parametrize("name", ["cnn", "cnn_se", "cnn_cbam_elu", "vgg16_eca"])
def test_the_state_dict_becomes_that_of_the_network_without_norms(name: str) -> None:
    model = _drawn(name, dtype=torch.float32, attention_options={} if "_" in name else None)
    x = torch.randn(1, 1, 48, 48)
    expected = model(x)
    fold_norms(model)
    plain: Any = create_model(name).eval()
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-4)
    taps = plain.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(model.forward_intermediates(x, intermediates_only=True), taps)
    assert model.feature_info == plain.feature_info
    assert model.attention_sites == plain.attention_sites
    for site in model.attention_sites:
        assert type(model.get_submodule(site.path)).__name__.lower() == name.split("_")[1]


@pytest.mark.parametrize("name", ["cnn_se", "vgg16_eca"])
def test_pruned_networks_are_folded_too(name: str) -> None:
    model = _drawn(name)
    x = torch.randn(1, 1, 48, 48, dtype=torch.float64)
    model.prune_intermediate_layers([0, 1])
    expected = model.forward_intermediates(x, [0, 1], intermediates_only=True)
    assert fold_norms(model) == 4
    torch.testing.assert_close(model.forward_intermediates(x, [0, 1], intermediates_only=True), expected)
    assert model.feature_info[1]["module"] == create_model(name).feature_info[1]["module"]


def test_blocks_at_every_placement_of_a_plain_stack_are_followed() -> None:
    for placement in ("conv", "pool", "before-fc", "before-fc-add", "conv:2,3"):
        model = _drawn("cnn_eca", placement=placement)
        x = torch.randn(1, 1, 48, 48, dtype=torch.float64)
        expected = model(x)
        assert fold_norms(model) == 7
        torch.testing.assert_close(model(x), expected)
        assert model.attention_sites == create_model("cnn_eca", placement=placement).attention_sites


def test_a_residual_networks_other_keys_stay() -> None:
    for name in ("resnet18_se", "resnetv2_18_cbam"):
        model = _drawn(name)
        before = set(model.state_dict())
        fold_norms(model)
        after = set(model.state_dict())
        assert {key for key in after - before if not key.endswith("bias")} == set()
        assert all(".bn" in key or "norm" in key or key.startswith("bn1") or ".1." in key for key in before - after)


class _NoFloat64(TorchDispatchMode):
    """Refuses float64 anywhere but on the CPU, as Apple's GPUs do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype is torch.float64 and tensor.device.type != "cpu":
                raise TypeError(f"{func}: there is no float64 on {tensor.device}")
        return made


def test_a_device_without_float64_will_do() -> None:
    with FakeTensorMode(), _NoFloat64():  # tensors that say they are there, without the device
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False, device="cuda"), nn.BatchNorm2d(4, device="cuda")).eval()
        with pytest.raises(TypeError, match="no float64"):
            model[0].weight.double()
        assert fold_norms(model) == 1
    for tensor in (model[0].weight, model[0].bias):
        assert (tensor.device.type, tensor.dtype) == ("cuda", torch.float32)


def test_training_mode_is_refused() -> None:
    model = _drawn("resnet18_se")
    with pytest.raises(InvalidOption, match=r"call model\.eval\(\)"):
        fold_norms(model.train())
    model.eval().layer1[0].bn2.train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidOption, match="eval mode"):
        fold_norms(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(InvalidOption, match=r"must be a torch\.nn\.Module"):
        fold_norms("resnet18")  # type: ignore[arg-type]


def _twice(block: Any) -> None:
    block.conv2 = block.conv1


def _bare(block: Any) -> None:
    block.bn1 = nn.BatchNorm2d(64, track_running_stats=False).double().eval()


LEFT_ALONE: dict[str, Callable[[Any], Any]] = {
    "hook on the convolution": lambda b: b.conv1.register_forward_hook(lambda m, i, out: out * 2),
    "hook on the norm": lambda b: b.bn1.register_forward_pre_hook(lambda m, i: (i[0] * 2,)),
    "own forward": lambda b: setattr(b.bn1, "forward", torch.tanh),
    "parametrised": lambda b: nn.utils.parametrizations.weight_norm(b.conv1),
    "attention between": lambda b: attach(b, CBAM, ["conv1"]) and b.double(),
    "foreign norm": lambda b: setattr(b, "bn1", nn.GroupNorm(4, 64).double()),
    "batch statistics": _bare,
    "one convolution in two places": _twice,
}


@pytest.mark.parametrize("change", LEFT_ALONE)
def test_what_is_more_than_convolution_and_norm_is_left_alone(change: str) -> None:
    block = _drawn("resnet18").layer1[0]
    LEFT_ALONE[change](block)
    block.eval()
    x = torch.randn(2, 64, 6, 6, dtype=torch.float64)
    expected = block(x)
    assert fold_norms(block) == (0 if change == "one convolution in two places" else 1)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("options", [{"affine": False}, {"eps": 0.5}])
def test_every_option_of_the_norm(options: dict[str, Any]) -> None:
    block = _drawn("resnet18").layer1[0]
    block.bn1 = nn.BatchNorm2d(64, **options).double()
    nn.init.uniform_(block.bn1.running_var, 0.5, 2.0)
    block.eval()
    x = torch.randn(2, 64, 6, 6, dtype=torch.float64)
    expected = block(x)
    assert fold_norms(block) == 2
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", ["resnet18_cbam", "resnetv2_18_se", "resnet18d", "resnetv2_50d"])
def test_converted_norms_and_deep_stems(name: str) -> None:
    model = _drawn(name)
    x = torch.randn(1, 1, 48, 48, dtype=torch.float64)
    expected = model(x)
    synchronised = convert_sync_batchnorm(copy.deepcopy(model)).eval()
    count = fold_norms(model)
    assert fold_norms(synchronised) == count >= 8
    for each in (model, synchronised):
        torch.testing.assert_close(each(x), expected)


@pytest.mark.parametrize("name", ["cnn_se", "resnet18_cbam", "resnetv2_18_eca"])
def test_feature_extractors(name: str) -> None:
    model = _drawn(name, features_only=True)
    x = torch.randn(1, 1, 48, 48, dtype=torch.float64)
    expected = model(x)
    assert fold_norms(model) > 5
    for ours, theirs in zip(model(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    for site in model.attention_sites:
        model.get_submodule(site.path)


def test_a_tap_between_convolution_and_norm_is_kept() -> None:
    from timm.models import FeatureListNet

    model = CNN(norm_layer=nn.BatchNorm2d).double().eval()
    model.feature_info[0] = {"num_chs": 32, "reduction": 1, "module": "features.0"}
    nn.init.uniform_(model.features[1].running_mean)
    x = torch.randn(1, 1, 48, 48, dtype=torch.float64)
    model = FeatureListNet(model, out_indices=(0, 1), flatten_sequential=True).eval()
    expected = model(x)
    assert fold_norms(model) == 3
    for ours, theirs in zip(model(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_timms_own_attention_is_folded_with_its_network() -> None:
    import timm

    model = timm.create_model("resnet18", block_args={"attn_layer": "cbam"}, in_chans=1).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    x = torch.randn(1, 1, 48, 48, dtype=torch.float64)
    expected = model(x)
    assert fold_norms(model) == 20 + 8
    torch.testing.assert_close(model(x), expected)


def test_dtype_layout_and_freezing_are_kept_and_shared_weights_untouched() -> None:
    model = _drawn("resnet18_se", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    first = model.layer1[0].conv1
    first.weight.requires_grad_(False)
    shared, value = first.weight, first.weight.clone()
    fold_norms(model)
    assert torch.equal(shared, value)
    assert first.weight.dtype == first.bias.dtype == torch.bfloat16
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
    assert not first.weight.requires_grad
    assert not first.bias.requires_grad
    assert model.layer1[0].conv2.bias.requires_grad


@pytest.mark.parametrize("name", ["resnet18_cbam_elu", "resnetv2_18_se"])
def test_folded_tails_are_still_fused(name: str) -> None:
    model = _drawn(name, fused=True)
    x = torch.randn(1, 1, 48, 48, dtype=torch.float64)
    expected = model(x)
    fold_norms(model)
    assert set(explain(model).values()) == {"fused"}
    torch.testing.assert_close(model(x), expected)
