"""Shared fixtures: real data is optional, and every test that needs it skips cleanly without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def _shared(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not on this machine")
    return path


@pytest.fixture(scope="session")
def fer2013_zip() -> Path:
    """FER2013 in Kaggle's folder layout, zipped."""
    return _shared("fer2013.zip")


@pytest.fixture(scope="session")
def yunet_onnx() -> Path:
    """The YuNet face detector's weights."""
    return _shared("yunet_n_640_640.onnx")
