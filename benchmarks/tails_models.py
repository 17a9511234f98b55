"""What attention costs a ResNet-50: tails fused, compiled or module by module, against the plain one; and the page.

Each record is one run of ``ferattn bench``, whose command stands in it. One eager training run took under
three minutes on a busy core with a warm compiler's cache, and more than three and a half without; ``--step``,
``--repeats`` and ``--budget`` make it shorter.

    python benchmarks/tails_models.py eager --out benchmarks/results
    python benchmarks/tails_models.py compiled --out benchmarks/results
    python benchmarks/tails_models.py page
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import torch

from ferattn.bench import read_record, report
from ferattn.cli import app

HERE = Path(__file__).resolve().parent
PAGE = HERE / "tails.md"
MARK = "<!-- below: written by `python benchmarks/tails_models.py page` -->\n"
STEPS = {"inference": "--no-train", "training": "--train"}
LAYOUTS = {"contiguous": "--no-channels-last", "channels_last": "--channels-last"}
MODES = {"eager": "--no-compile", "compiled": "--compile"}


def record_path(mode: str, step: str, layout: str, folder: Path) -> Path:
    """Where a record is kept."""
    return folder / f"bench-0.1.0-tailnets-{mode}-{step[:5]}-{layout}-cpu.json"


def measure(mode: str, step: str, options: argparse.Namespace) -> None:
    """One run of ``ferattn bench``."""
    ours = ["fused", "compiled-tails"] if mode == "eager" else ["fused"]
    arguments = ["bench", "resnet50_se", "resnet50_cbam", MODES[mode], STEPS[step], LAYOUTS[options.layout]]
    arguments += [word for other in ("timm", *ours) for word in ("--against", other)]
    arguments += ["--batch", str(options.batch), "--img-size", str(options.img_size), "--warmup", "2"]
    arguments += ["--repeats", str(options.repeats), "--budget", str(options.budget)]
    path = record_path(mode, step, options.layout, options.out)
    app([*arguments, "--json", str(path), "--overwrite"], standalone_mode=False)


def page(folder: Path) -> str:
    """The tables of all records that are there."""
    pieces = []
    for mode, step, layout in product(MODES, STEPS, LAYOUTS):
        path = record_path(mode, step, layout, folder)
        if path.exists():
            title = f"### ResNet-50, {'training step' if step == 'training' else step}, {mode}, {layout}\n"
            pieces += [title, report.as_markdown(read_record(path))]
    return "\n".join(pieces)


def main() -> None:
    """Read the command line, measure or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*MODES, "page"])
    parser.add_argument("--step", nargs="+", choices=[*STEPS], default=[*STEPS])
    parser.add_argument("--layout", choices=[*LAYOUTS], default="contiguous")
    parser.add_argument("--img-size", type=int, default=48, help="side of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--budget", type=float, default=40.0, help="seconds of sampling per run")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the records")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "page":
        text = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
        PAGE.write_text(text + MARK + "\n" + page(options.out), encoding="utf-8")
    else:
        for step in options.step:
            measure(options.what, step, options)


if __name__ == "__main__":
    main()
