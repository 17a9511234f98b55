"""Write docs/cards/ from the weights that come with the package: python docs/cards_page.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ferattn.shipped import read_config, shipped_names

FOLDER = Path(__file__).parent / "cards"


def pages() -> dict[str, str]:
    """Each page's Markdown, by its file's name."""
    written = {"index.md": index()}
    for name in shipped_names():
        card = f"../../src/ferattn/pretrained/{name}/README.md"
        options = ":start-after: <!-- card -->\n:relative-images:"
        written[f"{name}.md"] = f"```{{include}} {card}\n{options}\n```\n"
    return written


def index() -> str:
    """The list of what there is."""
    lines = [
        "# Shipped weights",
        "",
        "Made from the weights' own folders by `python docs/cards_page.py`; each has a card with everything else.",
        "",
    ]
    names = shipped_names()
    if not names:
        return "\n".join([*lines, "There are none yet."]) + "\n"
    lines += ["| name | trained on | test images | accuracy, % | card |", "|---|---|---|---|---|"]
    for name in names:
        config: dict[str, Any] = read_config(name) or {}
        made, tag = config["ferattn"], config["pretrained_cfg"]["tag"]
        for part, by_views in made["figures"].items():
            figures = by_views["none"]
            ends = figures["accuracy_interval"]
            accuracy = f"{100 * figures['accuracy']:.2f} ({100 * ends['low']:.2f} to {100 * ends['high']:.2f})"
            dataset = made["config"]["data"]["dataset"]
            lines.append(
                f"| `{name}.{tag}` | {dataset} | {part}, {figures['images']} | {accuracy} | [card]({name}.md) |"
            )
    toctree = ["", "```{toctree}", ":hidden:", "", *names, "```"]
    return "\n".join([*lines, *toctree]) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.md"):
        path.unlink()
    for file, text in pages().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
