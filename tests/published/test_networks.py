"""The rebuilt networks against the authors' own, and every rule against the table that rests on it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from ferattn.attention import CBAM, ECA, SE
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice
from ferattn.published import blocks, build, networks, published_count
from ferattn.shapes import shapes_only

# Counts of the authors' networks in TensorFlow 2.12; their code builds VGG-19 complete, the table prints it without
# one convolution.
AUTHORS = json.loads((Path(__file__).parent / "authors_networks.json").read_text())


def split(name: str) -> tuple[str, str | None]:
    backbone, _, attention = name.rpartition("_")
    return (backbone, attention) if attention in ("se", "eca", "cbam") else (name, None)


def counted(name: str, **options: object) -> int:
    with shapes_only():
        return published_count(build(*split(name), **options))


@pytest.mark.parametrize("name", AUTHORS)
def test_counts_are_those_of_the_authors_networks(name: str) -> None:
    assert counted(name) == AUTHORS[name]


def test_complete_vgg19_has_the_convolution_that_the_table_lacks() -> None:
    assert counted("vgg19", complete=True) - counted("vgg19") == 512 * 512 * 9 + 512
    assert f"{counted('vgg19', complete=True) / 1e6:.2f}" == "45.23"


@pytest.mark.parametrize(
    "name", ["vgg16_se", "vgg19", "resnet50_eca", "resnet50_cbam", "resnetv2_50", "resnetv2_50_se"]
)
def test_networks_run_and_every_parameter_gets_a_gradient(name: str) -> None:
    with shapes_only():
        model = build(*split(name))
        logits = model(torch.randn(2, 1, 48, 48))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_norm_made_for_another_height_refuses_the_map() -> None:
    with torch.device("meta"), pytest.raises(InvalidInput, match="24 high, got 28"):
        build("resnet50")(torch.randn(2, 1, 56, 56))


@pytest.mark.parametrize(
    ("rule", "value", "name"),
    [
        ("IMAGE", (3, 48, 48), "resnet50"),
        ("IMAGE", (1, 80, 80), "resnet50"),
        ("IMAGE", (1, 80, 80), "vgg16"),
        ("CLASSES", 8, "vgg16"),
        ("HIDDEN", (4096, 2048), "vgg16"),
        ("VGG19_PLAIN", (2, 2, 4, 4, 4), "vgg19"),
        ("BIASED", {"resnet": frozenset({"stem"}), "resnetv2": frozenset()}, "resnet50"),
        ("BIASED", {"resnet": frozenset(), "resnetv2": networks.BIASED["resnet"]}, "resnetv2_50"),
        ("HeightNorm", lambda height: nn.BatchNorm2d(64), "resnet50"),
        ("_strided", lambda height, stride: height // stride, "vgg16"),
    ],
)
def test_breaking_a_rule_breaks_the_count(
    monkeypatch: pytest.MonkeyPatch, rule: str, value: object, name: str
) -> None:
    monkeypatch.setattr(networks, rule, value)
    assert counted(name) != AUTHORS[name]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("resnet50_se", partial(SE, bias=False)),
        ("resnet50_eca", ECA),
        ("resnet50_cbam", CBAM),
        ("resnet50_cbam", partial(CBAM, spatial="norm")),
    ],
)
def test_another_form_of_a_block_breaks_the_count(monkeypatch: pytest.MonkeyPatch, name: str, block: object) -> None:
    monkeypatch.setitem(blocks.ATTENTION, name.split("_")[1], block)
    assert counted(name) != AUTHORS[name]


def test_another_kernel_rule_breaks_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "published_kernel_size", lambda channels: 5)
    assert counted("resnet101_eca") != AUTHORS["resnet101_eca"]


def test_the_published_eca_gates_images_not_channels() -> None:
    block = blocks.PooledECA(8)
    x = torch.rand(2, 8, 3, 3) + 0.1
    gates = (block(x) / x).flatten(1)
    torch.testing.assert_close(gates, gates[:, :1].expand_as(gates))
    assert gates[0, 0] != gates[1, 0]


def test_only_the_middle_tap_of_the_published_eca_does_anything() -> None:
    block, x = blocks.PooledECA(8), torch.randn(2, 8, 3, 3)
    before = block(x)
    with torch.no_grad():
        block.conv.weight[:, :, [0, 2]] += 1
        torch.testing.assert_close(block(x), before, rtol=0, atol=0)
        block.conv.weight[:, :, 1] += 1
    assert not torch.allclose(block(x), before)


def test_height_norm_normalises_rows() -> None:
    norm = blocks.HeightNorm(5)
    x = torch.randn(4, 3, 5, 7) * torch.arange(1, 6).view(1, 1, 5, 1) + 2
    y = norm(x)
    torch.testing.assert_close(y.mean((0, 1, 3)), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std((0, 1, 3), correction=0), torch.ones(5), atol=1e-3, rtol=0)


def test_vgg_adds_attention_to_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zero(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0 * x

    monkeypatch.setitem(blocks.ATTENTION, "se", Zero)
    monkeypatch.setattr(networks, "HIDDEN", (8, 8))
    model, x = build("vgg16", "se"), torch.randn(1, 1, 48, 48)
    torch.testing.assert_close(model.features(x), model.features[:-1](x))
    assert model.features(x).abs().sum() > 0


@pytest.mark.parametrize(
    ("place", "blocks_in_vgg16"), [("every-conv", 13), ("stages", 5), ("before-fc", 1), ("layers-11-14", 2)]
)
def test_places_of_vgg(place: str, blocks_in_vgg16: int) -> None:
    with shapes_only():
        model = build("vgg16", "se", place=place)
    assert len(model.attention_paths) == blocks_in_vgg16


def test_wrong_names_and_options() -> None:
    with pytest.raises(UnknownChoice, match="did you mean 'resnet50'"):
        build("resnet5")
    with pytest.raises(UnknownChoice, match="did you mean 'cbam'"):
        build("resnet50", "cbma")
    with pytest.raises(UnknownChoice, match="stages"):
        build("vgg16", "se", place="stage")
    with pytest.raises(InvalidOption, match="no attention block"):
        build("resnet50", attention_options={"reduction": 4})
    with pytest.raises(InvalidOption, match="odd"):
        blocks.PooledECA(8, kernel_size=4)
