"""The published tables, row by row: the printed count, ours, and what lies between, computed from built networks.

Only the printed numbers are data (``miskow2022.json``). Both counts and every part of the difference come from
networks that are built on the meta device when the tables are asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from torch import nn

from ferattn.factory import create_model
from ferattn.published.ledger import Ledger, difference, ledger
from ferattn.published.networks import CLASSES, IMAGE, build, published_count
from ferattn.shapes import shapes_only

__all__ = ["Row", "printed_figures", "published_tables"]

OUR_PLACES = {"stages": "pool", "before-fc": "before-fc", "layers-11-14": "layer:11,14"}
"""The placements of ferattn at the published places of VGG."""

METHODS = {1: "stages", 2: "before-fc", 3: "layers-11-14"}
"""The methods of Table 5."""


@dataclass(frozen=True)
class Row:
    """One row of a published table.

    Attributes:
        table: "table2", "table3", "table4", "table5" or "table7".
        backbone: Such as "resnet50".
        attention: None, "se", "eca" or "cbam".
        option: What the table varies, such as ``{"r": 8}``; empty in Table 7.
        published_millions: The printed count, in millions.
        ours: Parameters of ferattn's model.
        reconstructed: Count of the published network, rebuilt.
        difference: What to add to ours, part by part, to arrive at the reconstructed count.
        note: What is odd about the row, in one line; None where nothing is.
    """

    table: str
    backbone: str
    attention: str | None
    option: Mapping[str, int | str]
    published_millions: float
    ours: int
    reconstructed: int
    difference: Mapping[str, int]
    note: str | None

    @property
    def agreement(self) -> str:
        """How the rebuilt count meets the printed figure: "equal" (rounded), "cut" (cut off) or "differs"."""
        printed = f"{self.published_millions:.2f}"
        if printed == f"{self.reconstructed / 1e6:.2f}":
            return "equal"
        return "cut" if printed == _cut(self.reconstructed) else "differs"


def printed_figures() -> dict[str, Any]:
    """The figures as printed: ``table1`` to ``table5`` and ``table7``.

    >>> printed_figures()["table7"][0]["params_millions"]
    39.92
    """
    text = resources.files("ferattn.published").joinpath("miskow2022.json").read_text(encoding="utf-8")
    figures: dict[str, Any] = json.loads(text)
    return figures


def published_tables(progress: Callable[[Row], None] | None = None) -> dict[str, list[Row]]:
    """Tables 2, 3, 4, 5 and 7, every count computed now.

    Args:
        progress: Called with each row when it is done.
    """
    tables: dict[str, list[Row]] = {}
    for entry in _entries():
        row = _row(entry)
        tables.setdefault(row.table, []).append(row)
        if progress is not None:
            progress(row)
    return tables


@dataclass(frozen=True)
class _Entry:
    """What a printed row says, and the options and the place that it stands for."""

    table: str
    backbone: str
    attention: str | None
    millions: float
    option: Mapping[str, int | str] = field(default_factory=dict)
    attention_options: Mapping[str, int] = field(default_factory=dict)
    place: str | None = None


def _entries() -> Iterator[_Entry]:
    printed = printed_figures()
    for table, attention, label, option in (
        ("table2", "se", "r", "reduction"),
        ("table3", "eca", "k", "kernel_size"),
        ("table4", "cbam", "r", "reduction"),
    ):
        for row in printed[table]:
            options = {} if row[label] == "adaptive" else {option: row[label]}
            yield _Entry(table, "resnet50", attention, row["params_millions"], {label: row[label]}, options)
    for row in printed["table5"]:
        method = row["method"]
        yield _Entry("table5", "vgg16", "se", row["params_millions"], {"method": method}, place=METHODS[method])
    for row in printed["table7"]:
        yield _Entry("table7", row["backbone"], row["attention"], row["params_millions"])


def _row(entry: _Entry) -> Row:
    attention, options = entry.attention, entry.attention_options
    with shapes_only():
        theirs = build(entry.backbone, attention, place=entry.place or "before-fc", attention_options=options)
        ours = create_model(
            f"{entry.backbone}_{attention}" if attention else entry.backbone,
            num_classes=CLASSES,
            in_chans=IMAGE[0],
            img_size=IMAGE[1],
            placement=OUR_PLACES[entry.place] if entry.place else None,
            attention_options=options if attention else None,
        )
    row = Row(
        table=entry.table,
        backbone=entry.backbone,
        attention=attention,
        option=entry.option,
        published_millions=entry.millions,
        ours=sum(p.numel() for p in ours.parameters()),
        reconstructed=published_count(theirs),
        difference=difference(_our_ledger(ours), ledger(theirs, theirs.attention_paths), attention),
        note=None,
    )
    return replace(row, note=_note(row))


def _our_ledger(model: nn.Module) -> Ledger:
    sites: Any = getattr(model, "attention_sites", ())
    # timm writes some of its fully connected layers as 1x1 convolutions, we those of VGG.
    cfg: Any = model.pretrained_cfg
    return ledger(model, [site.path for site in sites], ("pre_logits", cfg["classifier"]))


# What is odd about a row


def _note(row: Row) -> str | None:
    return next((note for look in _ODDITIES if (note := look(row))), None)


def _misprint(row: Row) -> str | None:
    """A figure of another table that slipped in (Table 3, k = 1)."""
    if row.table != "table3" or row.agreement != "differs":
        return None
    for other in printed_figures()["table2"]:
        if other["params_millions"] == row.published_millions:
            return f"{row.published_millions:.2f} is the row r = {other['r']} of Table 2: a misprint"
    return None


def _shifted(row: Row) -> str | None:
    """The figure of a smaller kernel (Table 3, k = 3 and 5)."""
    if row.table != "table3" or row.agreement != "differs":
        return None
    for kernel_size in (1, 3, 5, 7, 9):
        smaller = _count("resnet50", "eca", attention_options={"kernel_size": kernel_size})
        if f"{row.published_millions:.2f}" in (_cut(smaller), f"{smaller / 1e6:.2f}"):
            return f"{row.published_millions:.2f} is what k = {kernel_size} gives ({smaller / 1e6:.4f} M, cut)"
    return None


def _missing_convolution(row: Row) -> str | None:
    """VGG-19 without attention (Table 7)."""
    if row.table != "table7" or "missing convolution" not in row.difference:
        return None
    complete = _count(row.backbone, row.attention, complete=True)
    if complete - row.reconstructed != -row.difference["missing convolution"]:
        return None
    return f"a 512x512 convolution is missing: {complete / 1e6:.2f} M with it, as in the rows with attention"


def _each_stage(row: Row) -> str | None:
    """Table 5, method 1."""
    if row.option.get("method") != 1 or row.agreement != "equal":
        return None
    everywhere = _count(row.backbone, row.attention, place="every-conv") / 1e6
    return f"one block after each stage; after each of the 13 convolutions it would be {everywhere:.2f} M"


def _underivable(row: Row) -> str | None:
    """Table 5, method 3."""
    if row.agreement != "differs" or row.option.get("method") is None:
        return None
    plain = _count(row.backbone, None) / 1e6
    reason = f", and is below {row.backbone} without any attention ({plain:.2f} M)"
    return "the figure cannot be derived from the text" + (reason if row.published_millions < plain else "")


def _cut_off(row: Row) -> str | None:
    if row.agreement != "cut":
        return None
    return f"{row.reconstructed / 1e6:.4f} M was cut to {row.published_millions:.2f}, not rounded"


def _unexplained(row: Row) -> str | None:
    return f"not explained: the rebuilt network has {row.reconstructed:,}" if row.agreement == "differs" else None


_ODDITIES = (_misprint, _shifted, _missing_convolution, _each_stage, _underivable, _cut_off, _unexplained)


def _count(backbone: str, attention: str | None, **options: Any) -> int:
    with shapes_only():
        return published_count(build(backbone, attention, **options))


def _cut(parameters: int) -> str:
    return f"{math.floor(parameters / 1e4) / 100:.2f}"
