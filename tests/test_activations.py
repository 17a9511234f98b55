"""Swapping activations: every one of the backbone's, none of the gates', and nothing of anybody else's."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import SEModule
from torch import nn

from ferattn import CBAM, SE, attach, swap_activations
from ferattn.activations import ACTIVATIONS
from ferattn.errors import InvalidOption, UnknownChoice


def _activations(model: nn.Module) -> list[type[nn.Module]]:
    kinds = (*ACTIVATIONS.values(),)
    return [type(module) for module in model.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("token", ACTIVATIONS)
def test_every_token_replaces_every_activation(token: str) -> None:
    model = timm.create_model("resnet18", in_chans=1, num_classes=7)
    keys = set(model.state_dict())
    assert swap_activations(model, token) == 17  # the stem's and two a block
    assert _activations(model) == [ACTIVATIONS[token]] * 17
    assert keys <= set(model.state_dict())
    x = torch.randn(2, 1, 48, 48)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("name", "count"), [("vgg11", 10), ("vgg11_bn", 10), ("resnetv2_18", 17), ("resnet26d", 27)])
def test_fused_norms_deep_stems_and_heads_are_reached(name: str, count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    before = len(_activations(model))
    assert swap_activations(model, "elu") == before == count
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "resnetv2_18"])
def test_timms_positional_true_never_becomes_elus_alpha(name: str) -> None:
    with torch.device("meta"):
        trapped = timm.create_model(name, act_layer=nn.ELU)
        model = timm.create_model(name)
    if name.startswith("vgg"):
        assert any(m.alpha is True for m in trapped.modules() if isinstance(m, nn.ELU)), "timm mended its trap"
    swap_activations(model, "elu")
    alphas = [module.alpha for module in model.modules() if isinstance(module, nn.ELU)]
    assert alphas
    assert all(isinstance(alpha, float) and alpha == 1.0 for alpha in alphas)


@settings(deadline=None, max_examples=20)
@given(first=st.sampled_from(sorted(ACTIVATIONS)), second=st.sampled_from(sorted(ACTIVATIONS)))
def test_the_last_swap_counts(first: str, second: str) -> None:
    def swapped(*tokens: str) -> list[type[nn.Module]]:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.GELU())
        for token in tokens:
            assert swap_activations(model, token) == 2
        return [type(module) for module in model]

    assert swapped(first, second) == swapped(second) == swapped(second, second)


def test_numbers_are_those_of_the_activation() -> None:
    model = nn.Sequential(nn.ReLU())
    x = torch.linspace(-3, 3, 101)
    swap_activations(model, "selu")
    torch.testing.assert_close(model(x), torch.selu(x))
    swap_activations(model, partial(nn.ELU, alpha=0.5))
    torch.testing.assert_close(model(x), torch.nn.functional.elu(x, alpha=0.5))


@pytest.mark.parametrize("token", sorted(ACTIVATIONS))
def test_in_place_activations_give_the_gradients_of_the_others(token: str) -> None:
    def gradients(inplace: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace)).double()
        swap_activations(model, token)
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        model(x).square().sum().backward()
        return x.grad

    torch.testing.assert_close(gradients(True), gradients(False))


def test_gates_are_left_alone() -> None:
    model = timm.create_model("seresnet18")
    swap_activations(model, "elu")
    gates = [module for module in model.modules() if isinstance(module, SEModule)]
    assert len(gates) == 8
    assert all(isinstance(gate.act, nn.ReLU) and type(gate.gate).__name__ == "Sigmoid" for gate in gates)
    theirs = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 4), nn.Sigmoid())
    model = nn.Sequential(nn.ReLU(), theirs)
    assert swap_activations(model, "elu") == 1
    assert isinstance(theirs[1], nn.ReLU)


def test_the_blocks_stay_the_same_when_swapped_around() -> None:
    model = timm.create_model("resnet18", in_chans=1)
    attach(model, CBAM, "residual-last")
    block = model.layer4[1].se
    x = torch.randn(2, 512, 2, 2)
    before = block(x)
    swap_activations(model, "elu")
    assert torch.equal(block(x), before)


def test_keep_leaves_the_named_ones_as_they_are() -> None:
    model = timm.create_model("resnet18")
    assert swap_activations(model, "elu", keep=("act1", "layer4.*.act2")) == 17 - 3
    assert isinstance(model.act1, nn.ReLU)
    assert isinstance(model.layer4[0].act2, nn.ReLU)
    assert isinstance(model.layer4[0].act1, nn.ELU)
    with pytest.raises(InvalidOption, match="keep names no activation of ResNet: act9"):
        swap_activations(model, "elu", keep=("act9",))


def test_keep_may_be_one_pattern_and_may_not_be_all() -> None:
    model = timm.create_model("resnet18")
    assert swap_activations(model, "elu", keep="act1") == 16
    with pytest.raises(InvalidOption, match=r"none is left by keep='\*'"):
        swap_activations(model, "elu", keep="*")


def test_attached_blocks_are_left_alone_by_swaps_and_draws() -> None:
    class Gate(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(channels, channels), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.act(self.fc(x.mean((2, 3))))[:, :, None, None]

    model = timm.create_model("resnet18", in_chans=1)
    (site,) = attach(model, Gate, "residual-last")
    gate = model.get_submodule(site.path)
    weight = gate.fc.weight.clone()
    assert swap_activations(model, "selu", init=True) == 17
    assert torch.equal(gate.fc.weight, weight)
    assert isinstance(gate.act, nn.ReLU)


def test_a_block_on_an_activation_is_not_thrown_away() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.PReLU())
    attach(model, partial(SE, reduced_channels=1), ["1"])
    with pytest.raises(InvalidOption, match="the activation '1' carries a block or a hook; swap before attaching"):
        swap_activations(model, "elu")
    assert isinstance(model[1], nn.PReLU)


def test_one_activation_in_several_places_is_swapped_in_all_of_them() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(1, 1, 3), shared, nn.Conv2d(1, 1, 3), shared)
    assert swap_activations(model, "elu") == 2
    assert isinstance(model[1], nn.ELU)
    assert model[1] is model[3]


@pytest.mark.parametrize("old", ["ReLU6", "Swish", "Mish", "HardSwish", "HardMish", "GELU", "GELUTanh", "QuickGELU",
                                 "SwishMe", "MishMe", "HardSwishMe", "HardMishMe", "PReLU"])  # fmt: skip
def test_timms_own_activations_are_found(old: str) -> None:
    from timm.layers import activations, activations_me

    make = getattr(nn, old) if old == "ReLU6" else getattr(activations, old, None) or getattr(activations_me, old)
    model = nn.Sequential(make())
    assert swap_activations(model, "elu") == 1
    assert isinstance(model[0], nn.ELU)


@pytest.mark.parametrize(
    "gate", ["nn.Sigmoid", "nn.Hardsigmoid", "timm.Sigmoid", "timm.HardSigmoid", "me.HardSigmoidMe"]
)
def test_every_kind_of_sigmoid_marks_a_gate(gate: str) -> None:
    from timm.layers import activations, activations_me

    home, _, name = gate.partition(".")
    make = getattr({"nn": nn, "timm": activations, "me": activations_me}[home], name)
    inside = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), make())
    model = nn.Sequential(nn.ReLU(), inside)
    weight = inside[0].weight.clone()
    assert swap_activations(model, "elu", init=True) == 1
    assert isinstance(inside[1], nn.ReLU)
    assert torch.equal(inside[0].weight, weight)


def test_in_place_stays_in_place() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.ReLU())
    swap_activations(model, "elu")
    assert [module.inplace for module in model] == [True, False]


def test_init_takes_the_right_fan_and_clears_biases() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 256, 3), nn.ReLU())
    swap_activations(model, "selu", init=True)
    assert model[0].weight.std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.02)
    assert model[0].bias.abs().max() == 0
    swap_activations(model, "elu", init=True)
    assert model[0].weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)


def test_init_draws_weights_for_the_activation() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vgg11", num_classes=7)
    classifier = model.get_classifier().weight.clone()
    conv = model.features[8]
    fan_in, fan_out = 256 * 9, 256 * 9
    swap_activations(model, "selu", init=True)
    assert conv.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
    swap_activations(model, "elu", init=True)
    assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    assert torch.equal(model.get_classifier().weight, classifier)
    before = conv.weight.clone()
    swap_activations(model, "relu")
    assert torch.equal(conv.weight, before)


def test_devices_dtypes_and_modes_are_followed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).double().eval()
    swap_activations(model, "prelu")
    assert model[1].weight.dtype == torch.float64
    assert not model[1].training
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    swap_activations(model, "prelu")
    assert model[1].weight.device.type == "meta"


def test_bad_input() -> None:
    with pytest.raises(UnknownChoice, match="unknown activation 'leaky_relu'; did you mean 'leakyrelu'"):
        swap_activations(nn.Sequential(nn.ReLU()), "leaky_relu")
    with pytest.raises(InvalidOption, match="Linear has no activation module"):
        swap_activations(nn.Linear(2, 2), "elu")
    for bad in (3, nn.ELU()):
        with pytest.raises(InvalidOption, match="must be a name or a callable"):
            swap_activations(nn.Sequential(nn.ReLU()), bad)
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(InvalidOption, match=r"must make a torch.nn.Module"):
        swap_activations(model, lambda: torch.relu)
    assert isinstance(model[0], nn.ReLU)
