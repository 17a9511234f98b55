"""What ``import ferattn`` gives, and what it costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import ferattn

DOOR = {
    "CBAM", "ECA", "SE", "ChannelGate", "ModelSpec", "SpatialGate", "attach", "create_model", "fold_norms",
    "list_models", "register", "swap_activations",
}  # fmt: skip

HEAVY = (
    "triton", "lightning", "torchmetrics", "cv2", "skimage", "scipy.stats", "statsmodels", "matplotlib", "pandas",
    "onnx", "rich", "typer", "torch._dynamo", "torch._inductor",
)  # fmt: skip


def test_the_door_is_this_wide() -> None:
    assert set(ferattn.__all__) == DOOR
    assert all(hasattr(ferattn, name) for name in DOOR)
    assert all(getattr(ferattn, name).__doc__ for name in DOOR)
    assert ferattn.__version__ == metadata.version("ferattn")


def _run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_importing_brings_nothing_heavy_that_timm_does_not() -> None:
    script = (
        "import sys, timm; before = set(sys.modules); import ferattn\n"
        f"print([name for name in {HEAVY!r} if name in set(sys.modules) - before])\n"
        "import torch; print(torch.cuda.is_initialized())"
    )
    assert _run(script).split("\n")[:2] == ["[]", "False"]


def test_importing_costs_little_over_timm() -> None:
    """Bound: a fifth of a second of processor time; about 0.02 s was measured on a quiet machine."""
    script = "import time, timm; start = time.process_time(); import ferattn; print(time.process_time() - start)"
    assert min(float(_run(script)) for _ in range(3)) < 0.2


def test_published_weights_need_no_lightning_and_runs_say_that_they_do(tmp_path: Path) -> None:
    """In a process without it; from a folder, too, of a model that ``list_models`` does not list."""
    weights = Path(ferattn.__file__).parent / "pretrained" / "cnn_se"
    shutil.copytree(weights, tmp_path / "mine")
    config = json.loads((weights / "config.json").read_text())
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config | {"architecture": "cnn_se_hardswish"}))
    script = (
        "import sys; from pathlib import Path; sys.modules['lightning'] = None\n"
        "from ferattn.errors import MissingDependency\n"
        "from ferattn.cli.evaluate import open_weights\n"
        "print(open_weights(None, None).name)\n"
        f"found = open_weights('local-dir:{tmp_path / 'mine'}', None)\n"
        "print(found.model.spec, found.classes[3])\n"
        "try:\n    open_weights(None, Path('run'))\n"
        "except MissingDependency as error:\n    print(error)\n"
    )
    assert _run(script).splitlines() == [
        "cnn_se.strong_fer2013",
        "cnn_se_hardswish happy",
        'training needs lightning: pip install "ferattn[train]"',
    ]


@pytest.mark.parametrize("module", ["ferattn", "ferattn.errors", "ferattn.reference", "ferattn.attention"])
def test_every_name_in_all_exists(module: str) -> None:
    import importlib

    loaded = importlib.import_module(module)
    assert all(hasattr(loaded, name) for name in loaded.__all__)


def test_torch_hub_opens_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    root = str(Path(__file__).resolve().parents[1])
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = torch.hub.load(root, "list_models", "*cbam_elu", source="local")
    assert names == ferattn.list_models("*cbam_elu")
    model = torch.hub.load(root, "create_model", "cnn_se", source="local", pretrained=True)
    images = torch.rand(2, 1, 48, 48)
    assert torch.equal(model.eval()(images), ferattn.create_model("cnn_se", pretrained=True).eval()(images))


def test_the_package_says_that_it_is_typed() -> None:
    from pathlib import Path

    assert (Path(ferattn.__file__).parent / "py.typed").exists()
