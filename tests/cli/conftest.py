"""One small run for all tests that only look at a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.running import FAST, run
from training import faces


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve images of each of four emotions."""
    return faces.folder_of_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ``cnn_se`` on them; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "luo"
    said = run("train", "--recipe", "luo2023", "--model", "cnn_se", "--data", images, "--out", out, *FAST)
    assert said.startswith("0"), said
    assert "accuracy" in said
    return out
