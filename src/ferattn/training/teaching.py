"""Learning from the answers of trained networks beside the labels: knowledge distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferattn.data import BatchTransform, Standardize
from ferattn.errors import InvalidOption

__all__ = ["Teacher", "Teachers", "distillation_loss", "require_pictures"]


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network whose answers are learnt from.

    Attributes:
        model: From images to logits.
        transform: From 8-bit images to what it sees.
        classes: Names of its outputs.
        size: Height and width of its images in pixels.
        channels: 1 for grey, 3 for colour.
        name: For messages.
        origin: What a run's config keeps of it: ``sha256`` of the weights, the ``config`` of the run that made them
            (None if unknown), and whether they were ``given_away`` rather than a run's own.
    """

    model: nn.Module
    transform: BatchTransform
    classes: tuple[str, ...]
    size: tuple[int, int]
    channels: int
    name: str
    origin: Mapping[str, Any]


class Teachers:
    """The mean answer of trained networks to what a student is shown.

    They see the same augmented and mixed pictures as the student, each at its own size and with its own scaling. They
    are no part of the student's state dict, and none of their weights is changed.

    Args:
        members: One or more.
        classes: Of the student; every teacher knows them all, and what it says of others is left out.
        channels: Of the student's images.

    Raises:
        InvalidOption: If a teacher does not know a class, or cannot be shown the student's pictures.

    Source: Hinton et al. 2015, arXiv 1503.02531; the same pictures for both: Beyer et al. 2022, arXiv 2106.05237.
    """

    def __init__(self, members: Sequence[Teacher], classes: Sequence[str], *, channels: int) -> None:
        if not members:
            raise InvalidOption("teachers: at least one.")
        for member in members:
            unknown = [name for name in classes if name not in member.classes]
            if unknown:
                raise InvalidOption(
                    f"the teacher {member.name} does not know {', '.join(unknown)}; it knows "
                    f"{', '.join(member.classes)}."
                )
            require_pictures(member, channels)
        self.members = tuple(members)
        self._rows = [torch.tensor([member.classes.index(name) for name in classes]) for member in members]
        for member in members:
            member.model.eval().requires_grad_(False)
            member.transform.eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> Teachers:
        """The same teachers: the average of a student's weights needs no copy of them."""
        return self

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Teachers:
        """Move them to a device."""
        for member in self.members:
            member.model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
            member.transform.to(device)
        self._rows = [rows.to(device) for rows in self._rows]
        return self

    def require(self, seen: BatchTransform) -> None:
        """Refuse a student whose pictures they cannot be shown.

        Raises:
            InvalidOption: If its scaling cannot be taken back.
        """
        _require_scaling(seen, "the student")

    @torch.no_grad()
    def __call__(self, images: Tensor, seen: BatchTransform, temperature: float) -> Tensor:
        """What they say of a batch.

        Args:
            images: As the student sees them, (b, c, h, w).
            seen: The student's transform, whose scaling is taken back.
            temperature: By which logits are divided.

        Returns:
            Probabilities of the student's classes, (b, k).
        """
        pixels = images if isinstance(seen.normalize, nn.Identity) else seen.normalize.undo(images)  # type: ignore[operator]
        answers = [
            (member.model(_as_seen_by(member, pixels)).float()[:, rows] / temperature).softmax(1)
            for member, rows in zip(self.members, self._rows, strict=True)
        ]
        return torch.stack(answers).mean(0)


def distillation_loss(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """T^2 times the divergence of the student from its teachers, KL(answers || softmax(logits / T)).

    Args:
        logits: The student's, (b, k).
        answers: Its teachers' probabilities at the same temperature T, (b, k).
        temperature: T; by its square the gradients stay as large as at 1.

    Returns:
        The mean over the batch, ().

    Source: Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    student = F.log_softmax(logits / temperature, 1)
    return temperature**2 * F.kl_div(student, answers, reduction="batchmean")


def require_pictures(member: Teacher, channels: int) -> None:
    """Refuse a teacher that cannot be shown a student's pictures of so many channels.

    Raises:
        InvalidOption: If it sees fewer channels, or pictures whose scaling cannot be made from others'.
    """
    if member.channels < channels:
        raise InvalidOption(f"the teacher {member.name} sees grey pictures and the student colour: set channels=1.")
    _require_scaling(member.transform, f"the teacher {member.name}")


def _require_scaling(transform: BatchTransform, who: str) -> None:
    if not isinstance(transform.normalize, nn.Identity | Standardize):
        raise InvalidOption(
            f"{who} sees {type(transform.normalize).__name__}-whitened pictures, which another network cannot be "
            "shown: only pictures that are scaled, or standardised by channel, can."
        )


def _as_seen_by(member: Teacher, pixels: Tensor) -> Tensor:
    if tuple(pixels.shape[-2:]) != member.size:
        pixels = F.interpolate(pixels, member.size, mode="bilinear", align_corners=False, antialias=True)
    if pixels.shape[1] < member.channels:
        pixels = pixels.expand(-1, member.channels, -1, -1)
    scaled: Tensor = member.transform.normalize(pixels)
    return scaled
