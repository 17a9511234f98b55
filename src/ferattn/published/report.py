"""The published tables as JSON, as Markdown and as text for a terminal, all from the same rows."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ferattn.published.tables import Row

__all__ = ["as_json", "as_markdown", "as_text"]

TITLES = {
    "table2": "Table 2: SE's reduction r in ResNet-50",
    "table3": "Table 3: ECA's kernel size k in ResNet-50",
    "table4": "Table 4: CBAM's reduction r in ResNet-50",
    "table5": "Table 5: the place of SE in VGG-16",
    "table7": "Table 7: all backbones and blocks",
}

COLUMNS = ("network", "published, M", "rebuilt", "", "ferattn", "difference, part by part")

INTRODUCTION = """\
# The published parameter counts, taken apart to the last parameter

Miskow & Altahhan (2022, [arXiv 2410.17740](https://arxiv.org/abs/2410.17740)) print parameter counts for 32 networks,
and more in their ablations. Their text does not say enough to arrive at them. The networks below do, for all of Table
7 and for all but four rows of the other tables: they are rebuilt under the rules at the end of this page and counted,
and what separates them from ferattn's models of the same name is split into parts, read off both networks:

    rebuilt = ferattn + the sum of the parts

"=" in the fourth column says that the rebuilt count, rounded, is the printed one; "cut" that the printed one is cut
off after two decimals; "≠" that it is neither. The counts and the parts of each difference are computed; the column
"published" is the paper's, and the rules at the end and the remarks under the tables are ours.

`ferattn published` prints these tables, `ferattn published --json FILE` writes them for machines, and
`python benchmarks/published.py` makes this page.
"""

RULES = """\
## The rules behind the published counts

1. The input is one grey image of 48x48 pixels (the text says 80x80), with 7 classes. VGG's pools round sizes up, so
   it ends on a 2x2 map.
2. VGG's head is 2048, 4096, 4096, 7; VGG has no norms.
3. ResNet: every convolution has a bias; the stride sits on the first 1x1 convolution and on the shortcut. ResNetV2:
   only the stem, the third convolution and the shortcuts have biases; the stride sits on the last block of stages 1
   to 3, where the shortcut is a pool.
4. Norms run over the *height* axis of channels-last data: four numbers per row of the map, moving statistics
   included. A batch norm over channels has two trainable numbers per channel: this is most of the difference.
5. SE and CBAM have biases on both layers; CBAM's 7x7 convolution has a bias and no norm, and its spatial gate reads
   the block's input.
6. ECA's convolution runs over an axis of length one with all channels as inputs: k times C weights, with
   k = int(log2(C) + 0.5) made odd, and one gate per image. Eq. (3) of the paper means k weights and one gate per
   channel.
7. VGG adds the output of attention to its input, once, before the fully connected layers.
8. VGG-19 without attention lacks one of its 512x512 convolutions.

The stem of the ResNets and the last activation of the ResNetV2s stay ReLU where everything else is ELU.
"""


def as_json(tables: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Plain data: ``{"table7": [{"backbone": ..., "ours": ..., "difference": {part: parameters}}, ...], ...}``."""
    return {
        table: [
            {
                "backbone": row.backbone,
                "attention": row.attention,
                **row.option,
                "published_millions": row.published_millions,
                "ours": row.ours,
                "reconstructed": row.reconstructed,
                "difference": dict(row.difference),
                "agreement": row.agreement,
                "note": row.note,
            }
            for row in rows
        ]
        for table, rows in tables.items()
    }


def as_markdown(tables: Mapping[str, Sequence[Row]]) -> str:
    """The page of the documentation."""
    pieces = [INTRODUCTION]
    for table in sorted(tables, reverse=True):
        rows = tables[table]
        lines = [f"## {TITLES[table]}", "", _summary(rows), ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---|--:|--:|:-:|--:|---|"]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
        odd = [f"- {_name(row)}: {row.note}." for row in rows if row.note]
        pieces.append("\n".join([*lines, "", *odd]).rstrip() + "\n")
    return "\n".join([*pieces, RULES])


def as_text(tables: Mapping[str, Sequence[Row]]) -> list[str]:
    """For a terminal of 80 columns: a block of lines for each table, with the parts of a difference below its row."""
    blocks = []
    for table in sorted(tables):
        lines = [TITLES[table], _line(COLUMNS[:-1])]
        for row in tables[table]:
            *numbers, parts = _cells(row)
            lines.append(_line(numbers))
            lines += (
                [] if parts == "none" else textwrap.wrap(parts, 80, initial_indent="    ", subsequent_indent="    ")
            )
            lines += textwrap.wrap(row.note or "", 80, initial_indent="    ! ", subsequent_indent="      ")
        blocks.append("\n".join([*lines, _summary(tables[table]), ""]))
    return blocks


def _line(cells: Sequence[str]) -> str:
    name, published, rebuilt, sign, ours = cells
    return f"{name:<28}{published:>13}{rebuilt:>13}  {sign:<3}{ours:>13}"


def _name(row: Row) -> str:
    option = "".join(f", {key} = {value}" for key, value in row.option.items())
    return row.backbone + (f" + {row.attention.upper()}" if row.attention else "") + option


def _cells(row: Row) -> tuple[str, ...]:
    sign = {"equal": "=", "cut": "cut", "differs": "≠"}[row.agreement]
    parts = "; ".join(f"{part} {parameters:+,}" for part, parameters in row.difference.items())
    return (
        _name(row),
        f"{row.published_millions:.2f}",
        f"{row.reconstructed:,}",
        sign,
        f"{row.ours:,}",
        parts or "none",
    )


def _summary(rows: Sequence[Row]) -> str:
    equal = sum(row.agreement == "equal" for row in rows)
    return f"{equal} of {len(rows)} rows are equal at two decimals."
