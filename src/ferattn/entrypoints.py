"""The module under which timm files ferattn's models; :mod:`ferattn.factory` fills it.

timm's ``register_model`` looks here for a model's ``default_cfgs`` entry and adds its name to ``__all__``.
"""

from __future__ import annotations

from typing import Any

__all__: list[str] = []

default_cfgs: dict[str, Any] = {}
"""Description of each model by name, in timm's form."""
