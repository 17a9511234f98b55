"""``ferattn export``, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.running import run
from ferattn.export import METADATA
from ferattn.predict import EmotionRecognizer


def test_the_published_weights_as_onnx_see_what_predict_sees(fer2013_zip: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from ferattn.data import open_dataset

    told = run("export", tmp_path / "faces.onnx", "--opset", "20")
    assert told.startswith("0 "), told
    assert "opset 20" in told
    assert "takes pictures: uint8, (batch, 1, 48, 48)" in told
    assert "gives probabilities: float32, (batch, 7)" in told
    assert "histogram-equalised" in told
    session = onnxruntime.InferenceSession(tmp_path / "faces.onnx", providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert about["weights"].startswith("cnn_se.")
    assert torch.__version__.startswith(about["made_by"]["torch"])
    faces = open_dataset(fer2013_zip).part("private")
    recognizer = EmotionRecognizer.from_pretrained(detector="none", equalise=False)
    for index in range(3):
        image = np.asarray(faces[index][0], dtype=np.uint8).reshape(48, 48)
        [probabilities] = session.run(["probabilities"], {"pictures": image[None, None]})[0]
        [face] = recognizer(image)
        assert list(face.probabilities) == about["classes"]
        np.testing.assert_allclose(probabilities, list(face.probabilities.values()), atol=1e-5)


def test_a_run_as_a_program_of_torch(trained: Path, tmp_path: Path) -> None:
    told = run("export", tmp_path / "net.pt2", "--checkpoint", trained, "--batch-size", "2")
    assert told.startswith("0 "), told
    assert "takes pictures: uint8, (2, 1, 48, 48)" in told
    extra = {METADATA: ""}
    net = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    about = json.loads(extra[METADATA])
    logits, probabilities = net(torch.zeros(2, 1, 48, 48, dtype=torch.uint8))
    assert logits.shape == (2, 4) == (2, len(about["classes"]))
    torch.testing.assert_close(probabilities, (logits / (about["temperature"] or 1)).softmax(-1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("faces.onx",), "unknown format '.onx'; did you mean '.onnx'"),
        (("faces",), "unknown format ''"),
        (("no/faces.onnx",), "there is no folder"),
        (("faces.pt2", "--opset", "20"), "--opset is for ONNX"),
        (("faces.onnx", "--model", "cnn_sse"), "did you mean 'cnn_se'"),
        (("faces.onnx", "--model", "cnn_eca"), "cnn_eca"),
        (("faces.onnx", "--checkpoint", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_told(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = run("export", *words)
    assert told.startswith("2 ")
    assert message in told
    assert not list(tmp_path.iterdir())
