"""Layers of a block that were hooked, replaced or wrapped are called, and say the same as the formulas."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from ferattn import create_model
from ferattn.attention import CBAM, ECA, SE, ChannelGate, SpatialGate
from ferattn.explain import attention_gates

BLOCKS: dict[str, Any] = {
    "se": lambda: SE(24, reduction=4),
    "se without biases": lambda: SE(24, reduction=4, bias=False),
    "eca": lambda: ECA(24),
    "eca round, with a bias": lambda: ECA(24, kernel_size=5, circular=True, bias=True),
    "channel gate": lambda: ChannelGate(24, reduction=4),
    "spatial gate": lambda: SpatialGate(spatial="bias"),
    "spatial gate with a norm": lambda: SpatialGate(kernel_size=3, spatial="norm"),
    "cbam": lambda: CBAM(24, reduction=4),
    "cbam of the input": lambda: CBAM(24, reduction=4, spatial="bias", refined=False),
}


def layers(block: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (path, module)
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
    ]


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return BLOCKS[request.param]()


X = torch.randn(3, 24, 6, 5, generator=torch.Generator().manual_seed(1))


class Adapter(nn.Module):
    """As LoRA libraries wrap a layer: the old one, frozen, and something small beside it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z) * (1 + self.scale)


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def test_hooks_fire_and_change_nothing_by_themselves(block: nn.Module) -> None:
    plain, called = block.eval()(X), []
    for path, layer in layers(block):
        layer.register_forward_hook(lambda module, given, out, path=path: called.append(path))
    torch.testing.assert_close(block(X), plain)
    assert set(called) == {path for path, _ in layers(block)}
    for path, layer in layers(block):
        if not path.endswith("fc1"):
            layer.register_forward_hook(lambda module, given, out: out + 50)
    assert not torch.allclose(block(X), plain)
    torch.testing.assert_close(block(X), X, atol=1e-4, rtol=1e-4)  # gates wide open


def test_adapters_are_trained(block: nn.Module) -> None:
    plain = block(X)
    for path, layer in layers(block):
        parent, _, name = path.rpartition(".")
        setattr(block.get_submodule(parent), name, Adapter(layer))
    found = block(X)
    torch.testing.assert_close(found, plain)
    found.square().sum().backward()
    adapters = [module for module in block.modules() if isinstance(module, Adapter)]
    assert adapters
    assert all(adapter.scale.grad is not None and adapter.scale.grad != 0 for adapter in adapters)


def test_weights_that_are_computed_are_learnt_through(block: nn.Module) -> None:
    """PyTorch's pruning and parametrizations; each step computes them anew."""
    wrapped = copy.deepcopy(block)
    for _, layer in layers(block):
        prune.random_unstructured(layer, "weight", amount=0.2)
    for _, layer in layers(wrapped):
        parametrize.register_parametrization(layer, "weight", Half())
    for module, name in ((block, "weight_orig"), (wrapped, "parametrizations.weight.original")):
        parameters = [parameter for key, parameter in module.named_parameters() if key.endswith(name)]
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.SGD(parameters, 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(X).square().mean().backward()
            optimizer.step()
        assert parameters
        assert all(not torch.equal(*pair) for pair in zip(parameters, before, strict=True))


def test_the_halves_of_cbam_are_called_too() -> None:
    block, called = CBAM(24), []
    plain = block(X)
    for half in (block.channel, block.spatial):
        half.register_forward_hook(lambda module, given, out: called.append(type(module)))
    assert torch.equal(block(X), plain)
    assert called == [ChannelGate, SpatialGate]


def test_gates_are_those_of_the_adapted_layers() -> None:
    model = create_model("resnet18_cbam", in_chans=3).eval()
    images = torch.randn(2, 3, 48, 48)
    block = model.get_submodule("layer1.0.se")
    before = attention_gates(model, images)["layer1.0.se"]
    block.channel.fc2 = Adapter(block.channel.fc2)
    with torch.no_grad():
        block.channel.fc2.scale.fill_(3.0)
        after = attention_gates(model, images)["layer1.0.se"]
        seen: list[Tensor] = []
        block.register_forward_hook(lambda module, given, out: seen.extend((given[0].clone(), out.clone())))
        model(images)
    assert not torch.allclose(before.channel, after.channel)
    x, out = seen
    gated = x * after.channel[:, :, None, None] * after.spatial[:, None]
    torch.testing.assert_close(out, gated)
