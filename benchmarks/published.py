"""Print the published tables, and write ``docs/published.md`` and ``benchmarks/results/published.json``.

The same as ``ferattn published`` with two options: ``python benchmarks/published.py``.
"""

from pathlib import Path

from ferattn.cli import app

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    page, results = HERE.parent / "docs" / "published.md", HERE / "results" / "published.json"
    app(["published", "--markdown", str(page), "--json", str(results)])
