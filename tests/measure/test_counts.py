"""Counts against closed forms, brute force, safetensors' files, and the laws that parts and wholes obey."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from ferattn import create_model
from ferattn.errors import InvalidInput, UnknownChoice
from ferattn.measure import count


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 7)
    )


def test_closed_forms() -> None:
    result = count(small(), (1, 6, 6))
    assert result.parameters == result.trainable == 4 * 9 + 2 * 4 + 7 * (4 * 36 + 1)
    assert result.buffers == 2 * 4 + 1
    assert result.flops == 2 * (36 * 4 * 9 + 4 * 36 * 7)
    assert result.elements == 2 * 4 * 36  # the norm and the activation
    assert result.activation_bytes == 4 * (3 * 4 * 36 + 7)
    # The convolution keeps its input, the norm its input and two statistics per channel and batch, the activation
    # its output, which is what the classifier keeps too.
    assert result.saved_bytes == 4 * (36 + 4 * 36 + 4 * 36)
    assert result.input_size == (1, 6, 6)


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 5), out=st.integers(1, 6), kernel=st.sampled_from([1, 3, 5]), stride=st.integers(1, 3),
    size=st.integers(5, 20), bias=st.booleans(),
)  # fmt: skip
def test_convolutions_follow_their_closed_form(
    inputs: int, out: int, kernel: int, stride: int, size: int, bias: bool
) -> None:
    result = count(nn.Conv2d(inputs, out, kernel, stride, bias=bias), (inputs, size, size))
    side = (size - kernel) // stride + 1
    assert result.flops == 2 * side * side * out * inputs * kernel * kernel
    assert result.parameters == out * inputs * kernel * kernel + out * bias


@pytest.mark.parametrize("name", ["resnet18_cbam", "resnetv2_50_se", "vgg16_eca"])
def test_flops_of_a_network_by_brute_force(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    expected = 0

    def add(module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal expected
        expected += 2 * out[0].numel() * module.weight[0].numel()

    plain = [m for path, m in model.named_modules() if isinstance(m, nn.Conv2d) and "attention" not in path]
    paths = [site.path for site in model.attention_sites]
    inside = {id(m) for path in paths for m in model.get_submodule(path).modules()}
    hooks = [m.register_forward_hook(add) for m in plain if id(m) not in inside]
    hooks += [m.register_forward_hook(add) for m in model.modules() if type(m) is nn.Linear and id(m) not in inside]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, 48, 48, device="meta"))
    for hook in hooks:
        hook.remove()
    result = count(model, (1, 48, 48))
    assert result.flops - result.by_part["attention"].flops == expected


def test_known_figures_of_resnet50() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet50")
    result = count(model, (3, 224, 224))
    assert result.parameters == 25_557_032
    assert round(result.flops / 2e9, 2) == 4.09  # the usual multiply-adds of ResNet-50
    assert result.by_part["classifier"].parameters == 2048 * 1000 + 1000


def test_parts_come_from_the_model_and_add_up() -> None:
    with torch.device("meta"):
        model, plain = create_model("resnet50_cbam"), create_model("resnet50")
    result = count(model, (1, 48, 48))
    assert result.by_part["backbone"].parameters + result.by_part["classifier"].parameters == sum(
        p.numel() for p in plain.parameters()
    )
    assert result.by_part["classifier"].parameters == 2048 * 7 + 7
    assert result.by_part["classifier"].flops == 2 * 2048 * 7
    for field in ("parameters", "trainable", "flops", "elements"):
        assert sum(getattr(part, field) for part in result.by_part.values()) == getattr(result, field)


def test_arguments_name_the_parts() -> None:
    model = small()
    assert count(model, (1, 6, 6)).by_part["classifier"].parameters == 0
    result = count(model, (1, 6, 6), attention=["0", "1"], classifier="4")
    assert result.by_part["attention"].parameters == 36 + 8
    assert result.by_part["classifier"].parameters == 7 * 145
    assert result.by_part["backbone"].parameters == 0
    assert count(model, (1, 6, 6), classifier=["3", "4"]).by_part["classifier"].parameters == 7 * 145


def test_modules() -> None:
    result = count(small(), (1, 6, 6))
    assert list(result.by_module) == ["", "0", "1", "2", "3", "4"]
    assert result.by_module["1"].kind == "BatchNorm2d"
    assert (result.by_module["1"].parameters, result.by_module["1"].buffers) == (8, 9)
    assert result.by_module["4"].flops == 2 * 4 * 36 * 7
    assert result.by_module["2"].elements == 4 * 36
    assert sum(result.by_module[path].flops for path in "01234") == result.by_module[""].flops == result.flops


def test_the_meta_device_counts_the_same() -> None:
    real = create_model("resnet18_se_elu")
    with torch.device("meta"):
        meta = create_model("resnet18_se_elu")
    assert count(real, (1, 48, 48)) == count(meta, (1, 48, 48))


def test_inference_mode_does_not_hide_the_flops() -> None:
    model = small()
    with torch.inference_mode():
        assert count(model, (1, 6, 6)) == count(model, (1, 6, 6))
        assert count(model, (1, 6, 6)).flops > 0


def test_larger_images_cost_more_and_frozen_parameters_do_not_train() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    model[0].requires_grad_(False)
    one, four = count(model, (1, 8, 8)), count(model, (1, 16, 16))
    assert four.flops > one.flops
    assert four.activation_bytes > one.activation_bytes
    assert (one.parameters, one.trainable) == (40 + 35, 35)
    assert one.by_part["backbone"].trainable == 35


def test_a_shared_parameter_counts_once() -> None:
    layer = nn.Linear(6, 6)
    result = count(nn.Sequential(layer, nn.ReLU(), layer), (6, 6, 6))
    assert result.parameters == 42
    assert result.flops == 2 * 2 * 36 * 6 * 6
    assert result.disk_bytes["float32"] == 4 * 42


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_size_on_disk_is_that_of_a_safetensors_file(dtype: torch.dtype) -> None:
    model = small()
    data = save(dict(model.to(dtype).state_dict()))
    header = 8 + int.from_bytes(data[:8], "little")
    expected = len(data) - header
    assert count(small(), (1, 6, 6)).disk_bytes[str(dtype).removeprefix("torch.")] == expected


def test_nothing_of_the_model_changes() -> None:
    model = small()
    model[1].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    count(nn.Sequential(*model, nn.Dropout(0.5)), (1, 6, 6))
    torch.testing.assert_close(torch.rand(3), expected)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_modes_come_back_after_an_error() -> None:
    model = small().train()
    with pytest.raises(InvalidInput):
        count(model, (3, 6, 6))
    assert all(module.training for module in model.modules())


ACTIVATIONS = [
    nn.ReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh,
]  # fmt: skip


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_every_activation_counts_in_place_or_not(kind: type[nn.Module], inplace: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), kind(inplace=inplace))
    result = count(model, (1, 3, 3))
    assert result.elements == 18
    assert result.activation_bytes == 4 * 18 * (1 if inplace else 2)


@pytest.mark.parametrize("kind", [nn.PReLU, nn.RReLU, nn.GELU, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Softsign])
def test_other_activations_count(kind: type[nn.Module]) -> None:
    assert count(nn.Sequential(nn.Conv2d(1, 2, 1), kind()), (1, 3, 3)).elements >= 18


class Fourier(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(x).abs()


def test_an_operator_without_a_formula_is_an_error_and_a_formula_helps() -> None:
    with pytest.raises(InvalidInput, match=r"no FLOP formula for the operator aten\._fft_r2c"):
        count(Fourier(), (1, 4, 8))
    formulas = {torch.ops.aten._fft_r2c: lambda shape, *args, out_shape, **options: 5 * math.prod(shape)}
    assert count(Fourier(), (1, 4, 8), formulas=formulas).flops == 5 * 32


def test_a_custom_operator_is_not_free() -> None:
    @torch.library.custom_op("ferattn_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    twice.register_fake(torch.empty_like)
    twice.register_autograd(lambda context, gradient: 2 * gradient)

    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return twice(x)

    with pytest.raises(InvalidInput, match=r"torch\.ops\.ferattn_tests\.twice"):
        count(Twice(), (1, 2, 3))
    formulas = {torch.ops.ferattn_tests.twice: lambda shape, out_shape, **options: math.prod(shape)}
    assert count(Twice(), (1, 2, 3), formulas=formulas).flops == 6


def test_a_model_with_copies_for_gpus_is_counted_as_its_original() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    assert count(nn.DataParallel(plain), (1, 8, 8)).flops == count(plain, (1, 8, 8)).flops > 0
    with pytest.raises(InvalidInput, match="channels, height, width"):
        count(plain, 48)


def test_a_compiled_model_is_counted_as_its_original() -> None:
    model = small()
    assert count(torch.compile(model), (1, 6, 6)) == count(model, (1, 6, 6))


def test_saved_bytes_fall_when_an_activation_works_in_place_of_another() -> None:
    sigmoid = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sigmoid())
    gelu = nn.Sequential(nn.Conv2d(1, 4, 1), nn.GELU())
    # A sigmoid keeps its output, a GELU its input: with the image, one map each.
    assert count(sigmoid, (1, 6, 6)).saved_bytes == count(gelu, (1, 6, 6)).saved_bytes == 4 * 36 * 5
    assert count(nn.Sequential(*sigmoid, nn.GELU()), (1, 6, 6)).saved_bytes == 4 * 36 * 5


@pytest.mark.parametrize("size", [(6, 6), (1, 6, 6, 6), (1, 0, 6), (1, 6.0, 6)])
def test_a_size_that_is_none(size: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="input_size must be"):
        count(small(), size)


def test_a_size_that_does_not_fit_the_model() -> None:
    with pytest.raises(InvalidInput, match=r"Sequential cannot take an image of 3x6x6: .*3 channels"):
        count(small(), (3, 6, 6))


def test_a_path_that_is_none() -> None:
    with pytest.raises(UnknownChoice, match="unknown module path '9'"):
        count(small(), (1, 6, 6), classifier="9")
    with pytest.raises(UnknownChoice, match="module path"):
        count(small(), (1, 6, 6), attention=["layer1"])
