"""Everything that is computed stays on the device where it began, seen on a GPU that exists in name only.

Fake tensors know their device and shape and hold no numbers: they refuse whatever would mix two devices on a real
GPU. They cannot be differentiated without one; the backward pass is seen on ``meta``, which refuses the same.
"""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ferattn import create_model
from ferattn.data import AUGMENTATIONS, VIEWS, BatchTransform, Standardize, make_mixer, views
from ferattn.data.keyed import keyed_uniform

M = TypeVar("M", bound=nn.Module)
MODELS = ("cnn_cbam", "vgg16_se", "resnet18_cbam", "resnet18_se", "resnetv2_18_eca_selu")
TAILS: dict[str, tuple[bool | str, ...]] = {"cnn": (False,), "vgg": (False,), "res": (False, True, "auto")}
DRAWN = [name for name, augmentation in AUGMENTATIONS.items() if augmentation.zca_epsilon is None]


def lend(module: M, mode: FakeTensorMode) -> M:
    """The module with its parameters and buffers on the GPU; what it keeps elsewhere stays behind."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            part._parameters[name] = nn.Parameter(lent(value.detach(), mode), value.requires_grad)
        for name, value in list(part.named_buffers(recurse=False)):
            part._buffers[name] = lent(value, mode)
    return module


def lent(value: Tensor, mode: FakeTensorMode) -> Tensor:
    """A tensor on the GPU."""
    fake = mode.from_tensor(value)
    with mode:
        return fake.to("cuda")


@pytest.fixture
def gpu() -> FakeTensorMode:
    """A GPU without numbers."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def test_a_tensor_left_behind_is_found(gpu: FakeTensorMode) -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.ones(3)  # no buffer

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    x = lent(torch.ones(2, 3), gpu)
    with gpu, pytest.raises(RuntimeError, match="device"):
        lend(Forgetful(), gpu)(x)
    with pytest.raises(RuntimeError, match="device"):
        Forgetful()(torch.ones(2, 3, device="meta"))


@pytest.mark.parametrize(("name", "fused"), [(name, fused) for name in MODELS for fused in TAILS[name[:3]]])
def test_networks_compute_where_they_are(name: str, fused: bool | str, gpu: FakeTensorMode) -> None:
    model = lend(create_model(name, num_classes=7, in_chans=1, fused=fused), gpu)
    images = lent(torch.zeros(2, 1, 48, 48), gpu)
    for training in (True, False):
        with gpu:
            logits = model.train(training)(images)
        assert logits.device.type == "cuda"


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_where_the_weights_are(name: str) -> None:
    for fused in TAILS[name[:3]]:
        model = create_model(name, num_classes=7, in_chans=1, fused=fused).to("meta").train()
        model(torch.zeros(2, 1, 48, 48, device="meta")).sum().backward()
        assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("name", DRAWN)
def test_images_are_changed_and_mixed_where_they_are(name: str, where: str, gpu: FakeTensorMode) -> None:
    transform = lend(BatchTransform(AUGMENTATIONS[name], Standardize((0.5,), (0.2,)), size=(40, 40)), gpu)
    mixer = make_mixer(name, 7)
    images, labels = lent(torch.zeros(4, 1, 48, 48, dtype=torch.uint8), gpu), lent(torch.arange(4), gpu)
    with gpu:
        indices = torch.arange(4, device=where)  # the loader's may be on the CPU
        changed = transform.train()(images, indices, 3)
        assert (changed.device, changed.shape) == (images.device, (4, 1, 40, 40))
        assert transform.eval()(images).device == images.device
        if mixer is not None:
            mixed, targets = mixer(changed, labels, indices, 3)
            assert mixed.device == targets.device == images.device
    assert (mixer is not None) == (name == "strong")


def test_views_are_where_the_images_are(gpu: FakeTensorMode) -> None:
    images = lent(torch.zeros(4, 1, 48, 48, dtype=torch.uint8), gpu)
    with gpu:
        assert all(views(images, kind).device == images.device for kind in VIEWS)


def test_random_numbers_do_not_ask_the_default_device() -> None:
    indices = torch.arange(5)
    with torch.device("meta"):
        found = keyed_uniform(7, 2, indices, 3)
    assert torch.equal(found, keyed_uniform(7, 2, indices, 3))
