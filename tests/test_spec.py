"""Names: parsing and formatting are inverses, on every name there is."""

from __future__ import annotations

import contextlib
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferattn import ModelSpec
from ferattn.activations import ACTIVATIONS
from ferattn.attention import ATTENTION
from ferattn.backbones import BACKBONES, timm_backbones
from ferattn.errors import UnknownChoice
from ferattn.spec import first_class_names

ALL_BACKBONES = sorted({*BACKBONES, *timm_backbones()})


def test_every_name_round_trips() -> None:
    seen = set()
    for backbone, attention, activation in product(ALL_BACKBONES, (None, *ATTENTION), (None, *ACTIVATIONS)):
        spec = ModelSpec(backbone, attention, activation)
        name = str(spec)
        assert ModelSpec.parse(name) == spec
        assert str(ModelSpec.parse(name)) == name
        seen.add(name)
    assert len(seen) == len(ALL_BACKBONES) * (1 + len(ATTENTION)) * (1 + len(ACTIVATIONS))


def test_timms_own_names_mean_the_plain_backbone() -> None:
    assert len(timm_backbones()) > 100
    assert all(ModelSpec.parse(name) == ModelSpec(name) for name in timm_backbones())


def test_tokens_hold_no_underscore() -> None:
    assert not any("_" in token for token in (*ATTENTION, *ACTIVATIONS))
    assert not set(ATTENTION) & set(ACTIVATIONS)


def test_first_class_names_are_the_products() -> None:
    names = first_class_names()
    assert len(names) == len(set(names)) == 13 * 4 * 4
    assert all(str(ModelSpec.parse(name)) == name for name in names)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnetv2_50_cbma_elu", "resnetv2_50_cbam_elu"),
        ("resnt50", "resnet50"),
        ("resnet50_elu_cbam", "resnet50_cbam_elu"),
        ("vgg16_bn_selu_eca", "vgg16_bn_eca_selu"),
        ("VGG16_SE", "vgg16_se"),
        ("resnet-50_se", "resnet50_se"),
    ],
)
def test_a_misspelt_name_gets_the_closest_one_and_the_options(name: str, suggestion: str) -> None:
    with pytest.raises(UnknownChoice) as caught:
        ModelSpec.parse(name)
    message = str(caught.value)
    assert f"unknown model {name!r}; did you mean {suggestion!r}?" in message
    assert all(option in message for option in (*BACKBONES, *ATTENTION, *ACTIVATIONS))


@pytest.mark.parametrize("name", ["", "_", "se", "elu", "_se", "cbam_elu", "resnet50_se_se", "resnet50__se", 7, None])
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(UnknownChoice, match=r"A name is <backbone>\[_<attention>\]\[_<activation>\]"):
        ModelSpec.parse(name)


@given(st.text(max_size=30))
def test_any_text_parses_or_is_refused_in_one_way(text: str) -> None:
    with contextlib.suppress(UnknownChoice):
        assert str(ModelSpec.parse(text)) == text


def test_parts_are_checked_where_they_are_given() -> None:
    for parts, message in (
        ({"backbone": "resnet51"}, "unknown backbone 'resnet51'"),
        ({"backbone": "resnet50", "attention": "cbm"}, "unknown attention 'cbm'; did you mean 'cbam'"),
        ({"backbone": "resnet50", "activation": "ellu"}, "unknown activation 'ellu'; did you mean 'elu'"),
    ):
        with pytest.raises(UnknownChoice, match=message):
            ModelSpec(**parts)
