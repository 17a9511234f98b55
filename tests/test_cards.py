"""The weights in the package and the pages about them."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from ferattn import shipped


@pytest.mark.parametrize("name", shipped.shipped_names())
def test_what_is_shipped(name: str) -> None:
    """Small, in half precision, whole, described, with a card; and timm finds it by the name."""
    folder = shipped.SHIPPED / name
    content = (folder / "model.safetensors").read_bytes()
    config = shipped.read_config(name)
    assert config is not None
    assert len(content) < 6_000_000
    assert hashlib.sha256(content).hexdigest() == config["sha256"]
    model: Any = timm.create_model(name, pretrained=True)
    assert len(model.pretrained_cfg["label_names"]) == model.num_classes == config["num_classes"]
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} <= {torch.float16, torch.int64}
    card = (folder / "README.md").read_text()
    test = next(iter(config["ferattn"]["figures"].values()))["none"]
    assert f"{100 * test['accuracy']:.2f}" in card
    assert "import ferattn  # first" in card
    assert (folder / "curves.png").stat().st_size


def test_the_pages_of_the_cards_are_up_to_date() -> None:
    path = Path(__file__).resolve().parents[1] / "docs" / "cards_page.py"
    spec = importlib.util.spec_from_file_location("cards_page", path)
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert {file.name: file.read_text() for file in page.FOLDER.glob("*.md")} == page.pages()
