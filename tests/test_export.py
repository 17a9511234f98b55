"""Files that run without ferattn compute what the network computes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ferattn import create_model
from ferattn.data import AUGMENTATIONS, BatchTransform, Standardize
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice
from ferattn.export import METADATA, EmotionNetwork, export_onnx, export_program, writer_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 1, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def emotion_network(temperature: float = 2.0) -> EmotionNetwork:
    torch.manual_seed(0)
    transform = BatchTransform(AUGMENTATIONS["none"], Standardize((0.5,), (0.25,)))
    return EmotionNetwork(create_model("cnn_se"), transform, temperature=temperature).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmotionNetwork, Any]:
    """A network, and what was said of its ONNX file."""
    network = emotion_network().train()
    path = tmp_path_factory.mktemp("onnx") / "faces.onnx"
    return network, export_onnx(network, path, opset=19, metadata={"classes": ["a", "b"], "temperature": 2.0})


def test_onnx_runtime_computes_logits_and_probabilities_for_any_batch(written: tuple[EmotionNetwork, Any]) -> None:
    network, told = written
    assert all(module.training for module in network.modules()), "the network is left as it was"
    session = onnxruntime.InferenceSession(told.path, providers=["CPUExecutionProvider"])
    for count in (1, 7):
        logits, probabilities = session.run(None, {"pictures": pictures(count).numpy()})
        with torch.inference_mode():
            expected = network.eval().model(network.transform.eval()(pictures(count)))
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        np.testing.assert_allclose(probabilities, (expected / 2).softmax(-1), atol=1e-5)
        assert not np.allclose(probabilities, expected.softmax(-1), atol=1e-3), "the temperature counts"
    network.train()


def test_what_is_told_of_the_file_is_so(written: tuple[EmotionNetwork, Any]) -> None:
    _, told = written
    model = onnx.load(told.path)
    assert told.format == "ONNX, opset 19"
    assert [entry.version for entry in model.opset_import if not entry.domain] == [19]
    assert told.bytes == told.path.stat().st_size
    assert told.inputs == {"pictures": ("batch", 1, 48, 48)}
    assert told.outputs == {"logits": ("batch", 7), "probabilities": ("batch", 7)}
    assert 0 <= told.largest_difference < 1e-4 < told.largest_output
    assert {entry.key: json.loads(entry.value) for entry in model.metadata_props} == {
        "classes": ["a", "b"],
        "temperature": 2.0,
    }


def test_a_program_runs_where_there_is_no_ferattn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = create_model("resnet18_cbam_elu", stem="small", fused=True)
    told = export_program(model, tmp_path / "net.pt2", metadata={"classes": ["a"]})
    assert told.format == "torch.export"
    assert told.inputs == {"images": ("batch", 1, 48, 48)}
    images = torch.randn(3, 1, 48, 48)
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import sys, torch\n"
        f"extra = {{{METADATA!r}: ''}}\n"
        "net = torch.export.load('net.pt2', extra_files=extra).module()\n"
        "torch.save(net(torch.load('images.pt')).detach(), 'logits.pt')\n"
        f"print(extra[{METADATA!r}], 'ferattn' in sys.modules, 'timm' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == '{"classes": ["a"]} False False', done.stderr
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model.eval()(images), rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_is_fixed(tmp_path: Path) -> None:
    told = export_program(create_model("cnn"), tmp_path / "net.pt2", torch.randn(5, 1, 48, 48), batch_size=1)
    assert told.inputs == {"images": (1, 1, 48, 48)}
    assert told.outputs == {"logits": (1, 7)}
    net = torch.export.load(told.path).module()
    assert net(torch.zeros(1, 1, 48, 48)).shape == (1, 7)
    with pytest.raises((AssertionError, RuntimeError)):
        net(torch.zeros(2, 1, 48, 48))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16_se_elu", "resnet18_eca_silu", "resnetv2_50_cbam_selu", "resnet50_se_prelu"])
@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_every_kind_of_backbone_attention_and_activation(name: str, export: Any, tmp_path: Path) -> None:
    told = export(create_model(name), tmp_path / "net", torch.randn(2, 1, 48, 48))
    assert told.largest_difference < 1e-4 * max(told.largest_output, 1)


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    network = emotion_network()
    half = EmotionNetwork(create_model("cnn_se").half(), network.transform)
    whole, halved = (export_program(one, tmp_path / "net.pt2") for one in (network, half))
    assert halved.bytes < 0.55 * whole.bytes
    assert halved.outputs == whole.outputs


def test_several_maps_and_features_without_a_classifier(tmp_path: Path) -> None:
    told = export_program(create_model("cnn_se", features_only=True), tmp_path / "maps.pt2")
    assert told.outputs == {
        "output_0": ("batch", 64, 48, 48),
        "output_1": ("batch", 128, 24, 24),
        "output_2": ("batch", 256, 12, 12),
        "output_3": ("batch", 256, 6, 6),
    }
    told = export_program(nn.DataParallel(create_model("cnn", num_classes=0)), tmp_path / "features.pt2")
    assert told.outputs == {"features": ("batch", 128)}


def test_a_compiled_model_is_exported_as_what_it_was_made_from(tmp_path: Path) -> None:
    plain: Any = create_model("cnn")
    told = export_program(torch.compile(plain, backend="eager"), tmp_path / "net.pt2")
    x = torch.randn(3, 1, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(torch.export.load(told.path).module()(x), plain.eval()(x))


def test_an_opset_that_the_runtime_does_not_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("too new")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(InvalidOption, match=r"opset 19: ONNX Runtime .* does not run it \(too new\)"):
        export_onnx(create_model("cnn"), tmp_path / "net.onnx", opset=19)
    assert not list(tmp_path.iterdir())


class Strange(nn.Module):
    """Computes something else at every call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.mean((2, 3)) + float(self.calls)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).log()


@pytest.mark.parametrize(("model", "match"), [(Strange(), "outputs differ"), (Broken(), "finite")])
def test_a_file_that_is_wrong_replaces_nothing(model: nn.Module, match: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"a good one")
    with pytest.raises(InvalidInput, match=match):
        export_program(model, path, -torch.ones(2, 1, 4, 4))
    assert path.read_bytes() == b"a good one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.parametrize(
    ("model", "options", "error", "match"),
    [
        (nn.Conv2d(1, 1, 3), {}, InvalidOption, "Conv2d does not say what images it takes"),
        (nn.Conv2d(1, 1, 3), {"example": torch.zeros(1, 9, 9)}, InvalidInput, r"\(b, c, h, w\)"),
        (nn.Conv2d(1, 1, 3), {"example": [[0.0]]}, InvalidInput, r"example a list: a tensor of images"),
        (nn.Conv2d(1, 1, 3), {"example": torch.zeros(1, 1, 9, 9), "batch_size": 0}, InvalidOption, "batch_size"),
        (nn.Conv2d(1, 1, 3), {"example": torch.zeros(1, 1, 9, 9), "opset": 17}, InvalidOption, "at least 18"),
        (nn.Conv2d(1, 1, 3), {"example": torch.zeros(1, 1, 9, 9), "opset": 999}, InvalidOption, "knows 18 to"),
        (nn.Conv2d(1, 1, 3), {"example": torch.zeros(1, 3, 9, 9)}, InvalidInput, r"float32 of shape \(2, 3, 9, 9\)"),
        (
            nn.Conv2d(1, 1, 3),
            {"example": torch.zeros(1, 1, 9, 9).byte()},
            InvalidInput,
            "that are torch.uint8",
        ),
        (nn.Conv2d(1, 1, 3), {"example": torch.zeros(1, 1, 9, 9), "metadata": {"x": int}}, InvalidOption, "JSON"),
        (nn.Conv2d(1, 1, 3).double(), {"example": torch.zeros(1, 1, 9, 9).double()}, InvalidOption, "float64"),
    ],
)
def test_mistakes_are_told(model: nn.Module, options: dict[str, Any], error: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        export_onnx(model, tmp_path / "net.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_temperature_and_a_format_must_exist() -> None:
    with pytest.raises(InvalidOption, match="temperature"):
        emotion_network(temperature=0.0)
    with pytest.raises(UnknownChoice, match=r"unknown format '.onxx'; did you mean '.onnx'"):
        writer_of(Path("net.onxx"))
    assert writer_of(Path("NET.ONNX")) is export_onnx
