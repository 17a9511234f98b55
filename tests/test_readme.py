"""The README is run: its Python, its commands, its table; and its promise that `.ci/run` calls the second command."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from conftest import SHARED_DATA
from ferattn import create_model
from ferattn.activations import ACTIVATIONS
from ferattn.backbones import BACKBONES
from ferattn.shapes import shapes_only
from training.faces import folder_of_images

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
INSTALLING = ("pip install . && ferattn bench --quick", "make install test")


def _blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("code", _blocks("python"))
def test_python_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def _own_pictures() -> list[str]:
    """The block of commands about a folder of one's own pictures."""
    return next(block.splitlines() for block in _blocks("sh") if "--data faces" in block)


@pytest.mark.parametrize(
    "command",
    [
        line
        for block in _blocks("sh")
        for line in block.splitlines()
        if line not in INSTALLING and line not in _own_pictures()
    ],
)
def test_commands_run(command: str, tmp_path: Path) -> None:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def _faces(folder: Path) -> None:
    """Fifteen pictures of each emotion: FER2013's where it is on this machine, else drawn ones."""
    if (SHARED_DATA / "fer2013.zip").exists():
        from PIL import Image

        from ferattn.data import FER2013

        images = FER2013(SHARED_DATA / "fer2013.zip", "train")
        for label, name in enumerate(images.classes):
            (folder / name).mkdir(parents=True)
            for row in (images.labels == label).nonzero()[:15, 0].tolist():
                Image.fromarray(images.read(row)[0].numpy()).save(folder / name / f"{row}.png")
    else:
        folder_of_images(folder, per_class=27)


def test_three_commands_train_and_evaluate_on_ones_own_pictures(tmp_path: Path) -> None:
    """As they stand there, but for one epoch instead of a hundred."""
    install, train, evaluate = _own_pictures()
    extra = re.search(r'"\.\[(\w+)\]"', install)
    assert extra is not None
    assert extra.group(1) in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    _faces(tmp_path / "faces")
    for command in (f"{train} --set epochs=1 --no-progress --no-tensorboard", evaluate):
        done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "accuracy" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (
        0 <= figures["accuracy_interval"]["low"] <= figures["accuracy"] <= figures["accuracy_interval"]["high"] <= 1
    )
    assert figures["images"] == json.loads((tmp_path / "run" / "results.json").read_text())["test"]["images"]


def test_both_promised_commands_are_there_and_ci_runs_the_second() -> None:
    lines = [line for block in _blocks("sh") for line in block.splitlines()]
    assert all(command in lines for command in INSTALLING)
    ci = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep -m 1 '(\^make \.\*test)' README.md", ci)
    assert pattern is not None
    found = next(line for line in README.splitlines() if re.match(pattern.group(1), line))
    assert found == INSTALLING[1]
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"install", "test", "check"} <= set(targets)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_table_counts_what_is_built(backbone: str) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `{backbone}` |"))
    written = [float(cell) for cell in row.split("|")[2:-1]]
    with shapes_only():
        counts = [
            sum(parameter.numel() for parameter in create_model(f"{backbone}{attention}").parameters())
            for attention in ("", "_se", "_eca", "_cbam")
        ]
    assert written == [round(count / 1e6, 2) for count in counts]


def test_the_activations_named_are_those_there_are() -> None:
    sentence = re.search(r"Activations: (.*?)\.", README, flags=re.DOTALL)
    assert sentence is not None
    assert re.findall(r"`(\w+)`", sentence.group(1)) == list(ACTIVATIONS)


def test_the_place_it_names_is_the_place() -> None:
    assert "def adaptive_kernel_size" in (ROOT / "src" / "ferattn" / "attention" / "eca.py").read_text()


@pytest.mark.parametrize("page", ["models.md", "placements.md", "index.md", "explain.md"])
def test_the_guides_python_runs(page: str) -> None:
    for code in _blocks("python", (ROOT / "docs" / page).read_text()):
        exec(compile(code, page, "exec"), {})


def test_the_page_about_files_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "export.md").read_text()
    write = next(block for block in _blocks("sh", page)).splitlines()[0]
    done = subprocess.run(write, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for code in _blocks("python", page):
        exec(compile(code, "export.md", "exec"), {})
