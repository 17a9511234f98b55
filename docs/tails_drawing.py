"""Draw ``tails.svg``: what a CBAM tail moves at inference. ``python docs/tails_drawing.py``.

A box is as wide as the maps that its operation reads (light) and writes (dark).
"""

from __future__ import annotations

from pathlib import Path

UNIT, HEIGHT, LEFT, TOP = 44, 46, 12, 34
ROWS = (
    (
        "module by module: 15 maps",
        (
            ("norm", 1, 1),
            ("mean", 1, 0),
            ("max", 1, 0),
            ("x gate", 1, 1),
            ("mean c", 1, 0),
            ("max c", 1, 0),
            ("x gate", 1, 1),
            ("+ shortcut", 2, 1),
            ("ReLU", 1, 1),
        ),
    ),
    ("in passes: 5 maps", (("pool", 1, 0), ("pool c", 1, 0), ("norm, gates, +, ReLU", 2, 1))),
)


def drawing() -> str:
    """The picture as SVG."""
    parts = []
    for row, (title, boxes) in enumerate(ROWS):
        y, x = TOP + row * (HEIGHT + 52), LEFT
        parts.append(f'<text x="{x}" y="{y - 10}" class="title">{title}</text>')
        for name, reads, writes in boxes:
            width = (reads + writes) * UNIT
            parts.append(f'<rect x="{x}" y="{y}" width="{reads * UNIT}" height="{HEIGHT}" class="read"/>')
            if writes:
                parts.append(
                    f'<rect x="{x + reads * UNIT}" y="{y}" width="{writes * UNIT}" height="{HEIGHT}" class="write"/>'
                )
            parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" class="frame"/>')
            parts.append(f'<text x="{x + width / 2:g}" y="{y + HEIGHT + 15}" class="name">{name}</text>')
            x += width
    y = TOP + (HEIGHT + 52)
    for x, kind, text in ((360, "read", "one map read"), (500, "write", "one map written")):
        parts.append(f'<rect x="{x}" y="{y + 16}" width="22" height="14" class="{kind}"/>')
        parts.append(f'<text x="{x + 30}" y="{y + 28}" class="legend">{text}</text>')
    style = (
        "text{font-family:sans-serif;font-size:11px;fill:#444}.title{font-size:14px;font-weight:bold}"
        ".name{text-anchor:middle;font-size:10px}.read{fill:#c6dbef}.write{fill:#6baed6}"
        ".frame{fill:none;stroke:#fff;stroke-width:2}"
    )
    width, height = LEFT * 2 + 15 * UNIT, TOP + 2 * HEIGHT + 80
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    )
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f"{head}<style>{style}</style>{background}{''.join(parts)}</svg>\n"


if __name__ == "__main__":
    Path(__file__).with_name("tails.svg").write_text(drawing(), encoding="utf-8")
