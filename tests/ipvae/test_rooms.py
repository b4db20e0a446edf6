"""The rooms of `ipvae` import each other one way only, function-level imports included."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import ipvae

ROOT = Path(ipvae.__file__).parent


def imported(file: Path) -> set[str]:
    """The rooms that a file imports from: folders and files right below `ipvae`. Types alone do not count."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    here = file.relative_to(ROOT).parts[:-1]
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = here[: len(here) - node.level + 1]
            for name in node.names:
                path = [*above, *(node.module or "").split("."), name.name]
                rooms.add(next(part for part in path if part))
    return rooms


def test_rooms_have_no_circles() -> None:
    rooms: dict[str, set[str]] = {}
    for file in ROOT.rglob("*.py"):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if room not in ("__init__", "__main__"):
            rooms.setdefault(room, set()).update(imported(file) - {room})
    assert {"checkpoint", "interop"} <= rooms["models"] <= rooms.keys()
    assert {"models", "evaluation"} <= rooms["training"]
    list(TopologicalSorter(rooms).static_order())  # raises CycleError, which names the circle
