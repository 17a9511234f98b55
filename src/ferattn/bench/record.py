"""The record of a benchmark: who measured what, where and how, and one row per case. ``schema.json`` describes it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any

import torch

from ferattn.bench.plan import Request
from ferattn.errors import InvalidInput, InvalidOption
from ferattn.processors import processor_name

__all__ = ["SCHEMA", "environment", "new_record", "read_record", "resume", "schema"]

SCHEMA = "ferattn-bench-1"
"""Name of the record's format."""


def new_record(suite: str, request: Request, device: torch.device, command: str) -> dict[str, Any]:
    """An empty record of a run that starts now."""
    settings = asdict(request) | {"device": str(device)}
    return {
        "schema": SCHEMA,
        "suite": suite,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "environment": environment(device),
        "settings": {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()},
        "copy_bytes_per_s": None,
        "notes": [],
        "rows": [],
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Commit, versions and device: what must be equal for two rows to belong together."""
    return {
        "commit": _commit(),
        "device": _device(device),
        "versions": {
            "python": platform.python_version(),
            "ferattn": _version("ferattn"),
            "torch": torch.__version__,
            "timm": _version("timm"),
            "triton": _version("triton"),
            "cuda": torch.version.cuda,
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "tf32": _tf32(),
    }


def _tf32() -> dict[str, bool]:
    """Whether products and convolutions in float32 may be less exact, said in torch's older settings or its newer."""
    try:
        return {
            "matmul": torch.get_float32_matmul_precision() != "highest",
            "convolution": bool(torch.backends.cudnn.allow_tf32),
        }
    except RuntimeError:  # the newer ones were used, and torch refuses to tell the older
        products, convolutions = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv")  # noqa: B009
        return {"matmul": products.fp32_precision == "tf32", "convolution": convolutions.fp32_precision == "tf32"}


def resume(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The record to go on with, where ``path`` holds ``old`` and ``new`` was asked for.

    Raises:
        InvalidOption: If the two were made in different ways, which must not mix in one file.
    """
    for part in ("suite", "settings", "environment"):
        if old[part] != new[part]:
            raise InvalidOption(
                f"--json {str(path)!r} holds a run with another {_first_difference(old[part], new[part], part)}; "
                "give another file, or --overwrite"
            )
    return dict(old)


def read_record(path: Path) -> dict[str, Any]:
    """A record from a file.

    Raises:
        InvalidInput: If it holds none.
    """
    try:
        record = loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, JSONDecodeError) as error:
        raise InvalidInput(f"{str(path)!r} cannot be read as a benchmark: {error}") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InvalidInput(f"{str(path)!r} is no benchmark record ({SCHEMA})")
    missing = [name for name in schema()["required"] if name not in record]
    if missing:
        raise InvalidInput(f"{str(path)!r} is no complete benchmark record: it lacks {', '.join(missing)}")
    return record


def schema() -> dict[str, Any]:
    """The JSON Schema of a record."""
    text = resources.files("ferattn.bench").joinpath("schema.json").read_text(encoding="utf-8")
    parsed: dict[str, Any] = loads(text)
    return parsed


def _first_difference(old: Any, new: Any, path: str) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in (*new, *old):
            if old.get(name) != new.get(name):
                return _first_difference(old.get(name), new.get(name), f"{path} {name}")
    return f"{path}: {old!r}, not {new!r}"


def _device(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "type": "cuda",
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
        }
    if device.type == "cpu":
        return {"type": "cpu", "name": processor_name(), "threads": torch.get_num_threads()}
    return {"type": device.type, "name": processor_name()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this very package, with "-dirty" where tracked files changed; None outside its repository."""
    package = Path(sys.modules["ferattn"].__file__ or "").resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() / "src" / "ferattn" != package:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{commit}-dirty" if commit and changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
