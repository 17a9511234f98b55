"""``ferattn models`` and ``ferattn show``: what they print, and one line for a mistake."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from ferattn import create_model, list_models
from ferattn.cli import app


def _run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200", "NO_COLOR": "1"})
    return result.exit_code, result.output


def test_models_lists_every_name() -> None:
    code, output = _run("models")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()[1:]] == list_models()


def test_models_takes_a_pattern() -> None:
    code, output = _run("models", "vgg16_cbam*")
    assert code == 0
    assert [line.split() for line in output.splitlines()[1:]] == [
        ["vgg16_cbam", "vgg16", "cbam", "its", "own"],
        ["vgg16_cbam_relu", "vgg16", "cbam", "relu"],
        ["vgg16_cbam_elu", "vgg16", "cbam", "elu"],
        ["vgg16_cbam_selu", "vgg16", "cbam", "selu"],
    ]


def test_show_counts_what_the_model_has() -> None:
    code, output = _run("show", "resnetv2_50_cbam_elu")
    assert code == 0
    model = create_model("resnetv2_50_cbam_elu")
    everything = sum(parameter.numel() for parameter in model.parameters())
    rows = {line.split()[0]: line.split()[1] for line in output.splitlines() if len(line.split()) == 2}
    parts = [int(rows[part].replace(",", "")) for part in ("backbone", "attention", "classifier", "all")]
    assert parts[3] == everything == sum(parts[:3])
    assert parts[2] == 2048 * 7 + 7
    for site in model.attention_sites:
        assert rows[site.path] == str(site.channels)
    assert "(2048, 2, 2)" in output


def test_show_takes_sizes_and_placements() -> None:
    code, output = _run("show", "vgg16_se", "--img-size", "80", "--in-chans", "3", "--num-classes", "8",
                        "--placement", "conv:11,13")  # fmt: skip
    assert code == 0
    assert "picture 3x80x80" in output
    assert "(64, 80, 80)" in output
    assert "(8,)" in output
    assert "features.25.attention" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "resnet50_cbma"), "unknown model 'resnet50_cbma'; did you mean 'resnet50_cbam'?"),
        (("models", "resnt50"), "unknown model 'resnt50'; did you mean 'resnet50'?"),
        (("models", "resnet26_se"), "resnet26_se is not listed here, but works: ferattn show resnet26_se"),
        (("show", "vgg16_se", "--placement", "residual"), "placement 'residual' finds no site in VGG"),
        (("show", "vgg16_se", "--img-size", "8"), "img_size must be at least 32 pixels"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: tuple[str, ...], message: str) -> None:
    code, output = _run(*words)
    assert code == 2
    assert output.startswith(f"error: {message}")
    assert len(output.strip().splitlines()) == 1


def test_the_installed_command_and_the_module_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "ferattn", "models", "cnn_se"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "cnn_se" in done.stdout
    done = subprocess.run([sys.executable, "-m", "ferattn", "show", "cnn_sse"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown model 'cnn_sse'; did you mean 'cnn_se'?")
    assert "Traceback" not in done.stderr
