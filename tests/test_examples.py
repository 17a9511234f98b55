"""The examples run, on real faces where there are some."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


def test_build_sends_real_faces_through_a_model(fer2013_zip: Path) -> None:
    done = _run(str(EXAMPLES / "01_build.py"), str(fer2013_zip), "--batch", "4")
    assert done.returncode == 0, done.stderr
    assert "resnetv2_50_cbam_elu: 16 attention blocks, faces (4, 1, 48, 48)" in done.stdout
    assert "(4, 2048, 2, 2)" in done.stdout
    assert "logits (4, 7)" in done.stdout
    rows = re.findall(r"^  (\w+) +((?:[+-]\d+\.\d{3} ?){7})$", done.stdout, flags=re.MULTILINE)
    assert len(rows) == 4
    assert len({numbers for _, numbers in rows}) == 4, "different faces give different logits"


def test_every_example_is_run_here() -> None:
    assert [path.name for path in sorted(EXAMPLES.glob("*.py"))] == ["01_build.py"]
