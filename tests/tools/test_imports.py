"""Benches are run by hand, years apart: what they take from the package must be there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a file takes from the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("espnet_ee."):
            yield from ((str(node.module), alias.name) for alias in node.names)


def names_in(module: str) -> set[str]:
    """What a module of the package defines; of a folder its modules."""
    place = ROOT.joinpath(*module.split("."))
    if place.is_dir():
        return {path.stem for path in place.iterdir()}
    names = set()
    for node in ast.parse(place.with_suffix(".py").read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        names |= {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else set()
    return names


def test_what_tools_import_is_there() -> None:
    taken = {(path.name, *names) for path in (ROOT / "tools").glob("*.py") for names in imported(path)}
    assert len(taken) > 50
    assert not [entry for entry in sorted(taken) if entry[2] not in names_in(entry[1])]
