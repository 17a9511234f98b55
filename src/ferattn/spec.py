"""Model names: ``<backbone>[_<attention>][_<activation>]``, parsed once into a frozen object."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from ferattn.activations import ACTIVATIONS
from ferattn.attention import ATTENTION
from ferattn.backbones import BACKBONES, is_timm_backbone, timm_backbones
from ferattn.errors import UnknownChoice, choose, closest

__all__ = ["PLAIN_PREFIX", "ModelSpec", "architecture_name", "first_class_names"]

PLAIN_PREFIX = "ferattn_"
"""Before a plain backbone's name where timm has a model of that name itself."""

_LISTED_ACTIVATIONS = ("relu", "elu", "selu")


@dataclass(frozen=True)
class ModelSpec:
    """What a model name says.

    Attributes:
        backbone: ``"cnn"``, or a VGG, ResNet or ResNetV2 of timm's.
        attention: A name from ``ATTENTION``, or None for the plain backbone.
        activation: A name from ``ACTIVATIONS``, or None for the backbone's own.

    Raises:
        UnknownChoice: If one of the three does not exist.

    >>> ModelSpec.parse("resnetv2_50_cbam_elu")
    ModelSpec(backbone='resnetv2_50', attention='cbam', activation='elu')
    >>> str(ModelSpec("vgg16", activation="selu"))
    'vgg16_selu'
    """

    backbone: str
    attention: str | None = None
    activation: str | None = None

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES and not is_timm_backbone(self.backbone):
            raise UnknownChoice(_unknown(self.backbone, "backbone", timm_backbones()))
        if self.attention is not None:
            choose(ATTENTION, self.attention, "attention")
        if self.activation is not None:
            choose(ACTIVATIONS, self.activation, "activation")

    @classmethod
    def parse(cls, name: str) -> ModelSpec:
        """Read a name from the right: an activation if there is one, an attention if there is one, the backbone.

        Raises:
            UnknownChoice: If what is left is no backbone.
        """
        if not isinstance(name, str):
            raise UnknownChoice(_unknown(name, "model", ()))
        rest, attention, activation = name, None, None
        head, _, tail = rest.rpartition("_")
        if head and tail in ACTIVATIONS:
            rest, activation = head, tail
            head, _, tail = rest.rpartition("_")
        if head and tail in ATTENTION:
            rest, attention = head, tail
        if rest not in BACKBONES and not is_timm_backbone(rest):
            candidates = _reordered(name) or (*first_class_names(), *timm_backbones())
            raise UnknownChoice(_unknown(name, "model", candidates))
        return cls(rest, attention, activation)

    def __str__(self) -> str:
        return "_".join(part for part in (self.backbone, self.attention, self.activation) if part)


def architecture_name(name: str) -> str:
    """A model's name without the weights' tag and without ``PLAIN_PREFIX``; whether it exists is not asked.

    >>> architecture_name("cnn_se.fer2013"), architecture_name("ferattn_vgg16")
    ('cnn_se', 'vgg16')
    """
    return name.partition(".")[0].removeprefix(PLAIN_PREFIX)


def first_class_names() -> list[str]:
    """Every first-class backbone with every attention, with its own activation and the papers' three."""
    return [
        "_".join(part for part in parts if part)
        for parts in product(BACKBONES, (None, *ATTENTION), (None, *_LISTED_ACTIVATIONS))
    ]


def _reordered(name: str) -> list[str]:
    """The name with its tokens in the right order, if that is all that was wrong: ``resnet50_elu_cbam``."""
    tokens = name.split("_")
    attention = [token for token in tokens if token in ATTENTION]
    activation = [token for token in tokens if token in ACTIVATIONS]
    backbone = "_".join(token for token in tokens if token not in (*attention, *activation))
    if len(attention) > 1 or len(activation) > 1 or (backbone not in BACKBONES and not is_timm_backbone(backbone)):
        return []
    return ["_".join((backbone, *attention, *activation))]


def _unknown(name: object, what: str, candidates: tuple[str, ...] | list[str]) -> str:
    match = closest(name, candidates) if isinstance(name, str) else None
    return (
        f"unknown {what} {name!r}{f'; did you mean {match!r}?' if match else '.'} "
        f"A name is <backbone>[_<attention>][_<activation>]; backbones: {', '.join(BACKBONES)}, and any other VGG, "
        f"ResNet or ResNetV2 of timm's; attention: {', '.join(ATTENTION)}; activations: {', '.join(ACTIVATIONS)}."
    )
