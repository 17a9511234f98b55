"""Write ``docs/benchmarks.md`` and its plot from ``benchmarks/results``: ``python benchmarks/page.py``."""

from __future__ import annotations

from pathlib import Path

from ferattn.bench import read_record, report

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
PLOT = "benchmarks.svg"

INTRODUCTION = """\
# Benchmarks

Every figure on this page was measured, and each section begins with the command that measured it. The records, JSON
with commit, device and versions, are in `benchmarks/results`; `python benchmarks/page.py` makes this page from them.

`ferattn bench --quick` measures three backbones with and without attention on your own machine in about two minutes.

How it is measured: inputs are made before the clock starts, the clock is read when the device has finished, and
everything is warmed up (and compiled) first. The members of a group take turns, in alternating order, and a ratio
compares samples of the same turn: a machine that slows down slows all of them. "x" is speed over the first of the
group (2 is twice as fast, below 1 is a loss), a median over the turns; "±" is half the distance between the
quartiles. On a CPU, "MiB" is what the process needs at its peak: weights, inputs, activations, and what libraries
take for themselves. Losses stand beside wins. The records below come from one thread (`OMP_NUM_THREADS=1`) of a
machine that had other work to do, where no other number is printed; its load is printed with each. Compare within a
group: between groups the load changed (the ResNetV2 rows of the first table suffered from it, as their "±" shows).

On a GPU the same commands run as they are, and blocks and tails are also replayed as CUDA graphs. No GPU has been at
hand for this page; these commands make what is owed (the tails of residual blocks have a page of their own,
{doc}`tails`):

    ferattn bench --against timm --device cuda --batch 256 --dtype bfloat16 --channels-last --json models-gpu.json
    ferattn bench blocks --device cuda --batch 256 --dtype bfloat16 --json blocks-gpu.json
    ferattn bench tails --device cuda --batch 256 --dtype bfloat16 --channels-last --json tails-gpu.json
"""

SECTIONS = (
    ("models", "Whole models: inference", "The plain backbone is the first of each group."),
    ("training", "Whole models: training step", "Forward, backward and a step of SGD with momentum."),
    ("sizes", "Whole models: larger images", "The same at 80 and 224 pixels."),
    (
        "blocks",
        "Attention blocks alone",
        "ferattn's blocks and timm's with the same weights, at the feature maps of ResNet-50's four stages. The last "
        "column is the best share of the copy bandwidth, counting only the bytes that no implementation can avoid; "
        "small maps stay in a cache, so it may exceed 100 %. The first record, of all sizes, is from before the "
        "gradient of the blocks' mean lost a pass, and its eager training rows are too slow; the second has those at "
        "48 pixels as they are now.",
    ),
)


def page() -> str:
    """The page, from the records."""
    pieces = [INTRODUCTION]
    for suite, title, text in SECTIONS:
        for number, path in enumerate(sorted(RESULTS.glob(f"bench-*-{suite}-*.json"))):
            record = read_record(path)
            pieces.append(f"`{path.name}`:\n" if number else f"## {title}\n\n{text} `{path.name}`:\n")
            if suite == "models":
                pieces.append(f"![Cost against throughput]({PLOT})\n")
            if suite == "blocks":
                pieces.append(report.block_summary(record))
            pieces.append(report.as_markdown(record))
    return "\n".join(pieces)


if __name__ == "__main__":
    (DOCS / "benchmarks.md").write_text(page(), encoding="utf-8")
    for path in sorted(RESULTS.glob("bench-*-models-*.json")):
        report.plot(read_record(path), DOCS / PLOT)
