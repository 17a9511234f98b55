"""Gates and class activation maps, held against what the blocks do and against another library's maps."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ferattn import CBAM, SE, ChannelGate, SpatialGate, attach, create_model
from ferattn.cli.explain import explanations
from ferattn.errors import InvalidInput, InvalidOption, NoSite, UnknownChoice
from ferattn.explain import METHODS, attention_gates, class_activation_maps, explanation
from ferattn.predict import EmotionRecognizer


def images(count: int = 2, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, 48, 48, generator=torch.Generator().manual_seed(1))


def with_block(block: Any) -> Any:
    model: Any = create_model("resnet18", stem="small")
    attach(model, block, "stage")
    return model


def cbam(**options: Any) -> Any:
    return create_model("resnet18_cbam", stem="small", attention_options=options)


def inputs_and_outputs(model: nn.Module, paths: list[str], x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    seen = {}
    hooks = []
    for path in paths:

        def keep(_: nn.Module, inputs: Any, output: Tensor, path: str = path) -> None:
            seen[path] = (inputs[0], output.clone())  # timm adds the shortcut in place

        hooks.append(model.get_submodule(path).register_forward_hook(keep))
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("make", "count", "kinds"),
    [
        (lambda: create_model("cnn_se"), 3, (True, False)),
        (lambda: create_model("resnetv2_18_eca_elu", stem="small"), 8, (True, False)),
        (lambda: create_model("resnet18_cbam", stem="small", fused=True), 8, (True, True)),
        (lambda: cbam(spatial="bias", refined=False), 8, (True, True)),
        (lambda: cbam(spatial="norm"), 8, (True, True)),
        (lambda: with_block(ChannelGate), 4, (True, False)),
        (lambda: with_block(lambda channels: SpatialGate()), 4, (False, True)),
        (lambda: with_block(partial(SE, reduction=4)), 4, (True, False)),
    ],
)  # fmt: skip
def test_a_map_times_its_gates_is_what_the_block_gives(make: Any, count: int, kinds: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    model, x = make(), images()
    for module in model.modules():  # gates that differ from each other
        if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
            nn.init.normal_(module.bias)
    gates = attention_gates(model, x)
    assert len(gates) == count
    for path, (before, after) in inputs_and_outputs(model, list(gates), x).items():
        gate = gates[path]
        assert (gate.channel is not None, gate.spatial is not None) == kinds
        expected = before
        if gate.channel is not None:
            assert gate.channel.shape == before.shape[:2]
            expected = expected * gate.channel[:, :, None, None]
        if gate.spatial is not None:
            assert gate.spatial.shape == (len(x), *before.shape[2:])
            expected = expected * gate.spatial[:, None]
        torch.testing.assert_close(after, expected)
        parts = [part for part in (gate.channel, gate.spatial) if part is not None]
        assert all(part.min() >= 0 and part.max() <= 1 for part in parts)


@pytest.mark.parametrize(
    "look", [attention_gates, class_activation_maps, partial(class_activation_maps, layer="layer2")]
)
def test_looking_leaves_no_trace(look: Any) -> None:
    model: Any = create_model("resnet18_cbam", stem="small").train()
    model.layer1.eval().requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = {path: module.training for path, module in model.named_modules()}
    learning = [parameter.requires_grad for parameter in model.parameters()]
    look(model, images())
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert model.fc.weight.grad.eq(1).all()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is not None] == ["fc.weight"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["resnet18_cbam", "resnetv2_18_se_elu", "cnn_se", "cnn", "vgg11_eca"])
@pytest.mark.parametrize("last", [True, False])
def test_one_run_gives_what_several_give(name: str, last: bool) -> None:
    model, faces = create_model(name), images(3)
    model.train()
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    layer = None if last else layers[len(layers) // 2]
    runs = []
    hook = model.register_forward_hook(lambda *_: runs.append("all"))
    once = explanation(model, faces, layer=layer)
    assert len(runs) == (0 if last else 1)  # forward_features and forward_head are its two halves
    hook.remove()
    assert model.training
    torch.testing.assert_close(once.maps, class_activation_maps(model, faces, layer=layer))
    gates = attention_gates(model, faces) if name != "cnn" else {}
    assert list(once.gates) == list(gates)
    for path, gate in gates.items():
        for kind in ("channel", "spatial"):
            torch.testing.assert_close(getattr(once.gates[path], kind), getattr(gate, kind))
    with torch.no_grad():
        logits = model.eval()(faces)
    torch.testing.assert_close(once.logits, logits)
    assert once.classes.tolist() == logits.argmax(1).tolist()
    assert not once.logits.requires_grad
    assert not any(part._forward_pre_hooks for part in model.modules())
    asked = explanation(model, faces, [2, 0, 1], layer=layer)
    assert asked.classes.tolist() == [2, 0, 1]
    torch.testing.assert_close(asked.maps, class_activation_maps(model, faces, [2, 0, 1], layer=layer))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_faces_are_recognised_and_drawn_in_any_precision(dtype: torch.dtype) -> None:
    face = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    found = []
    for kind in (torch.float32, dtype):
        recognizer = EmotionRecognizer.from_pretrained("cnn_se", detector="none")
        recognizer.model.to(kind)
        [drawn] = explanations(recognizer, [face], row=None, method="hires-cam", layer=None)
        found.append((recognizer(face)[0].probabilities, drawn["map"]))
    assert found[0][0] == pytest.approx(found[1][0], abs=0.02)
    assert np.abs(found[0][1] - found[1][1]).max() < 0.05 * found[0][1].max()


def test_looking_within_no_grad_and_at_a_model_that_fails() -> None:
    model: Any = create_model("cnn_se").train()
    expected = class_activation_maps(model, images())
    assert expected.max() > 0
    with torch.no_grad():
        assert torch.equal(class_activation_maps(model, images()), expected)
    with torch.inference_mode():
        for layer in (None, "features"):
            torch.testing.assert_close(class_activation_maps(model, images(), layer=layer), expected)
    with pytest.raises(RuntimeError):
        attention_gates(model, images(channels=3))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [
        ("cnn_se", "features.14", {}),
        ("resnet18_cbam", "layer2.0.bn1", {"stem": "small", "zero_init_last": False}),
    ],
)
def test_grad_cam_is_captums(name: str, layer: str, options: dict[str, Any]) -> None:
    """The last pool of ``cnn``, and a norm that an activation in place comes after."""
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    model: Any = create_model(name, **options).double().eval()
    x, classes = images(3).double(), [4, 0, 6]
    ours = class_activation_maps(model, x, classes, method="grad-cam", layer=layer)
    oracle = captum.LayerGradCam(model, model.get_submodule(layer))
    theirs = oracle.attribute(x, target=classes, relu_attributions=True)
    theirs = captum.LayerAttribution.interpolate(theirs, (48, 48), "bilinear")[:, 0]
    assert ours.max() > 0
    torch.testing.assert_close(ours, theirs.detach())


def test_the_last_map_is_the_one_that_the_head_reads() -> None:
    model: Any = create_model("cnn_se").double()
    x = images().double()
    last = class_activation_maps(model, x, method="hires-cam")
    torch.testing.assert_close(last, class_activation_maps(model, x, method="hires-cam", layer="features"))
    other = class_activation_maps(model, x, method="hires-cam", layer="features.3")
    assert not torch.allclose(last, other)


class Flat(nn.Module):
    """A map, and a linear classifier that sees each of its places by itself."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1 if pooled else 24)
        self.fc = nn.Linear(4 * (1 if pooled else 24 * 24), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.map(x)).flatten(1))  # type: ignore[no-any-return]


def test_hires_cam_adds_up_to_the_logit_behind_one_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before negative places are cut off: Draelos & Carin 2020's completeness, and Grad-CAM has none."""
    import ferattn.explain

    nothing = SimpleNamespace(relu=lambda x: x, interpolate=lambda x, *_, **__: x)
    monkeypatch.setattr(ferattn.explain, "F", nothing)
    torch.manual_seed(0)
    model, x = Flat(pooled=False).double(), images(3).double()
    sums = class_activation_maps(model, x, [0, 1, 2], method="hires-cam", layer="map").sum((1, 2))
    with torch.no_grad():
        logits = (model(x) - model.fc.bias).diagonal()
    torch.testing.assert_close(sums, logits)
    others = class_activation_maps(model, x, [0, 1, 2], method="grad-cam", layer="map").sum((1, 2))
    assert not torch.allclose(others, logits, rtol=1e-2)


def test_behind_an_average_both_methods_are_one() -> None:
    torch.manual_seed(0)
    model, x = Flat(pooled=True).double(), images(3).double()
    one, other = (class_activation_maps(model, x, layer="map", method=method) for method in METHODS)
    assert one.max() > 0
    torch.testing.assert_close(one, other)
    own = class_activation_maps(model, x, model(x).argmax(1), layer="map")
    torch.testing.assert_close(class_activation_maps(model, x, layer="map"), own)
    other_class = class_activation_maps(model, x, (model(x).argmax(1) + 1) % 3, layer="map")
    assert not torch.allclose(own, other_class)


@pytest.mark.parametrize(
    ("model", "options", "error", "match"),
    [
        ("cnn_se", {"method": "gradcam"}, UnknownChoice, "did you mean 'grad-cam'"),
        ("cnn_se", {"layer": "feature.3"}, UnknownChoice, "did you mean 'features.3'"),
        ("cnn_se", {"layer": ""}, UnknownChoice, "unknown layer"),
        ("cnn_se", {"layer": "head.fc"}, InvalidInput, r"head.fc gives no feature map \(b, c, h, w\) but \(2, 7\)"),
        ("cnn_se", {"classes": [0]}, InvalidOption, "one of the outputs 0 to 6 for each of 2 images"),
        ("cnn_se", {"classes": [0, 7]}, InvalidOption, "0 to 6"),
        ("cnn_se", {"classes": [0.0, 1.0]}, InvalidOption, "0 to 6"),
        ("cnn_se", {"classes": ["happy", "sad"]}, InvalidOption, "0 to 6"),
        (nn.Conv2d(1, 3, 3), {}, InvalidInput, "has no forward_features"),
        (nn.Sequential(nn.Conv2d(1, 3, 3)), {"layer": "0"}, InvalidInput, r"logits \(b, k\)"),
    ],
)
def test_mistakes_are_told(model: Any, options: dict[str, Any], error: Any, match: str) -> None:
    network = create_model(model) if isinstance(model, str) else model
    with pytest.raises(error, match=match):
        class_activation_maps(network, images(), **options)


def test_no_gates_and_layers_never_reached() -> None:
    with pytest.raises(NoSite, match="no SE, ECA or CBAM block"):
        attention_gates(create_model("cnn"), images())
    model = Flat(pooled=True)
    model.spare = nn.Conv2d(1, 1, 1)
    with pytest.raises(UnknownChoice, match="'spare' is not called"):
        class_activation_maps(model, images(), layer="spare")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("compiled", ["as a function", "in place"])
def test_a_compiled_model_that_has_run_is_seen_into(compiled: str) -> None:
    plain: Any = create_model("cnn_se").eval()
    model: Any = plain
    gates, maps = attention_gates(plain, images()), class_activation_maps(plain, images(), layer="features.4")
    if compiled == "in place":
        plain.compile(backend="eager")
    else:
        model = torch.compile(plain, backend="eager")
    for _ in range(2):
        with torch.no_grad():
            model(images())
        found = attention_gates(model, images())
        assert found.keys() == gates.keys() != set()
        torch.testing.assert_close([one.channel for one in found.values()], [one.channel for one in gates.values()])
        torch.testing.assert_close(class_activation_maps(model, images(), layer="features.4"), maps)


def test_copies_for_several_gpus_are_looked_at_as_one() -> None:
    model: Any = create_model("cnn_se")
    wrapped = nn.DataParallel(model)
    assert attention_gates(wrapped, images()).keys() == attention_gates(model, images()).keys()
    assert torch.equal(class_activation_maps(wrapped, images()), class_activation_maps(model, images()))


class ChannelsLast(nn.Module):
    """As timm's models whose maps are (b, h, w, c)."""

    num_features = 4

    def forward_features(self, x: Tensor) -> Tensor:
        return x[:, 0, :6, :6, None].expand(-1, -1, -1, 4).clone()

    def forward_head(self, x: Tensor) -> Tensor:
        return x.mean((1, 2))


class Aside(Flat):
    """Looks at something that does not count."""

    def forward(self, x: Tensor) -> Tensor:
        self.pool(self.map(x))
        return self.fc(torch.zeros(len(x), 4)) + x.mean()


def test_what_is_no_classifier_of_maps_is_refused() -> None:
    features: Any = create_model("resnet18_cbam", num_classes=0)
    with pytest.raises(InvalidInput, match="has no classifier"):
        class_activation_maps(features, images(), [500, 3])
    several: Any = create_model("resnet18_cbam", features_only=True)
    with pytest.raises(InvalidInput, match="the model gives a list"):
        class_activation_maps(several, images(), layer="layer1")
    with pytest.raises(InvalidInput, match=r"\(2, 6, 6, 4\): no \(b, 4, h, w\)"):
        class_activation_maps(ChannelsLast(), images())
    with pytest.raises(InvalidInput, match="do not come from what map gives"):
        class_activation_maps(Aside(pooled=True), images(), layer="map")


def test_a_block_inside_another_is_not_counted_twice() -> None:
    model: Any = create_model("resnet18_cbam", stem="small")
    paths = list(attention_gates(model, images()))
    assert all(type(model.get_submodule(path)) is CBAM for path in paths)
