"""For torch.hub: ``torch.hub.load("FOLDER", "create_model", "cnn_se", source="local", pretrained=True)``."""

import sys as _sys
from pathlib import Path as _Path

dependencies = ["numpy", "safetensors", "timm", "torch"]

_sys.path.insert(0, str(_Path(__file__).resolve().parent / "src"))

from ferattn import create_model, list_models  # noqa: E402

__all__ = ["create_model", "list_models"]
