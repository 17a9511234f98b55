"""Networks that are built for their shapes alone."""

from __future__ import annotations

from time import process_time

import pytest
import torch

from ferattn import create_model
from ferattn.shapes import shapes_only


@pytest.mark.parametrize("name", ["resnet18_cbam", "resnetv2_50x1_bit_se", "vgg11_bn_eca", "cnn_se_elu"])
def test_shapes_are_those_of_the_meta_device(name: str) -> None:
    with shapes_only():
        bare = create_model(name)
        logits = bare(torch.empty(3, 1, 48, 48))
    with torch.device("meta"):
        whole = create_model(name)
    assert logits.shape == (3, 7)
    first, second = (
        {key: (value.shape, value.dtype, value.device) for key, value in model.state_dict().items()}
        for model in (bare, whole)
    )
    assert first == second
    assert {str(value.device) for value in bare.state_dict().values()} == {"meta"}


def test_nothing_is_initialised() -> None:
    with shapes_only():
        calls = []
        layer = torch.nn.Linear(2, 3)
        calls.append(layer.weight.uniform_() is layer.weight)
        calls.append(torch.nn.init.constant_(tensor=layer.bias, val=1) is layer.bias)
    assert calls == [True, True]
    assert torch.nn.init.ones_(torch.zeros(2)).tolist() == [1, 1]  # only inside


def test_it_is_what_it_saves_that_makes_it_faster() -> None:
    def seconds(build: object) -> float:
        start = process_time()
        with build:  # type: ignore[attr-defined]
            create_model("resnet50")
        return process_time() - start

    pairs = [(seconds(shapes_only()), seconds(torch.device("meta"))) for _ in range(3)]
    assert min(short for short, _ in pairs) < min(long for _, long in pairs)
