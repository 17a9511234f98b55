"""The house's floors: an import of ours, in function bodies too, only ever goes down."""

from __future__ import annotations

import ast
from pathlib import Path

import ferattn

PACKAGE = Path(ferattn.__file__).parent

# A room may import from the floors below its own, and from inside itself.
FLOORS = [
    {"errors", "files", "pools", "reference", "entrypoints", "smoothing", "wrappers", "processors", "shapes"},
    {"statistics"},
    {"heads", "kernels"},
    {"activations", "attention", "placements", "cnn", "stems", "tail_graphs"},
    {"sites", "backbones", "residual"},
    {"spec", "weights", "shipped", "folding"},
    {"assembly"},
    {"factory"},
    {"training", "predict", "explain", "export", "published", "bench"},
    {"cli"},
]
# The wings stand on errors and files alone and can be taken away.
WINGS = {"measure", "faces", "data"}
DOORS = {"__init__", "__main__"}
EXCEPTIONS = {
    ("reference", "errors"),
    ("files", "errors"),
    ("smoothing", "errors"),
    ("reference", "pools"),
}  # all on the ground floor


def _floor(room: str) -> int:
    return next(index for index, rooms in enumerate(FLOORS) if room in rooms)


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in it."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "ferattn":
            parts = (node.module or "").split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ferattn.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return rooms


def _files() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if _room(path) not in DOORS]


def test_every_room_has_a_floor() -> None:
    known = set().union(*FLOORS) | WINGS | DOORS
    assert {_room(path) for path in PACKAGE.rglob("*.py")} <= known


def test_imports_only_go_down() -> None:
    names = {room for path in _files() for room in [_room(path)]}
    wrong = []
    for path in _files():
        room = _room(path)
        for other in _imports(path):
            if other == room or (room, other) in EXCEPTIONS:
                continue
            if other not in names:  # a name at the door, which is above everything but the command line
                down = room in FLOORS[-1] or room in FLOORS[-2]
            elif room in WINGS:
                down = other in ("errors", "files")
            elif other in WINGS:
                down = room in FLOORS[-1] or room in FLOORS[-2]
            else:
                down = _floor(other) < _floor(room)
            if not down:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not wrong


def test_no_file_is_too_long_to_read() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_no_room_without_a_name() -> None:
    vague = {"utils", "common", "core", "helpers", "base", "misc"}
    assert not [path for path in PACKAGE.rglob("*") if path.stem in vague]
