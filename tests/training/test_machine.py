"""What a run says of the machine that it is on."""

from __future__ import annotations

import json
import platform
import warnings
from pathlib import Path

import pytest
import torch

from ferattn.processors import is_slow_in_bfloat16, processor_name
from ferattn.training import Machine, fit
from training import faces


@pytest.mark.parametrize(
    ("machine", "capability", "slow"),
    [
        ("x86_64", "AVX2", True),
        ("AMD64", "AVX2", True),  # Windows
        ("x86_64", "DEFAULT", True),
        ("x86_64", "AVX512", False),
        ("x86_64", "AVX512_BF16", False),
        ("aarch64", "DEFAULT", False),
        ("arm64", "DEFAULT", False),
    ],
)
def test_bfloat16_is_slow_on_x86_without_avx512(
    monkeypatch: pytest.MonkeyPatch, machine: str, capability: str, slow: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert is_slow_in_bfloat16() is slow


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc/cpuinfo")
def test_the_processor_has_its_name_and_a_run_keeps_it(tmp_path: Path) -> None:
    named = {line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()}
    assert processor_name() in named | {platform.processor(), platform.machine()}
    folder = fit(faces.network(), faces.parts(), faces.recipe(epochs=1), tmp_path, machine=Machine(accelerator="cpu"))
    device = json.loads((folder.path / "versions.json").read_text())["device"]
    assert device == (torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name())


@pytest.mark.parametrize(
    ("precision", "capability", "told"),
    [("bf16", "AVX2", True), ("bf16", "AVX512", False), ("fp32", "AVX2", False)],
)
def test_precision_that_slows_down_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, capability: str, told: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    machine = Machine(accelerator="cpu", precision=precision)
    for _ in range(2):  # the second time the run has finished, and nothing is slow
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(faces.network(), faces.parts(), faces.recipe(epochs=1), tmp_path, machine=machine)
        found = [str(warning.message) for warning in caught if "no AVX-512" in str(warning.message)]
        assert len(found) == told
        assert all("precision='fp32'" in message and processor_name() in message for message in found)
        told = False
