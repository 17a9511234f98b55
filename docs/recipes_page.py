"""Write docs/recipes.md from the recipes' own files: python docs/recipes_page.py"""

from __future__ import annotations

from pathlib import Path

from ferattn.training import list_recipes, load_page


def page() -> str:
    """The page as Markdown."""
    lines = [
        "# Recipes",
        "",
        "Made from the recipes' files by `python docs/recipes_page.py`; `ferattn recipes NAME` prints one.",
    ]
    for name in list_recipes():
        recipe = load_page(name)
        lines += ["", f"## {name}", "", recipe.summary, "", f"Source: {recipe.source}."]
        for title, topics in (("What the paper says", recipe.says), ("What was chosen", recipe.chose)):
            if topics:
                lines += ["", f"### {title} ({name})", ""]
            lines += [f"- {topic}: {text}" for topic, text in topics.items()]
        lines += ["", f"### Settings ({name})", "", "| where | key | value |", "|---|---|---|"]
        tables = {"everywhere": recipe.settings}
        tables |= {f"on {kind}": changes for kind, changes in recipe.datasets.items()}
        tables |= {f"variant {variant}": changes for variant, changes in recipe.variants.items()}
        lines += [
            f"| {where} | `{key}` | `{value!r}` |" for where, keys in tables.items() for key, value in keys.items()
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "recipes.md").write_text(page(), encoding="utf-8")
