#!/usr/bin/env python3
"""Which mistakes would no test notice? Breaks the code in small ways, one at a time, and lists what the tests let pass.

Works in a copy of the checkout; every mutant is tested by the tests that import its file, and its room's. Each test run is a fork
of this process, which has the heavy packages loaded. Results are kept in a file, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["espnet_ee/policy", "espnet_ee/search", "espnet_ee/score", "espnet_ee/decode/loop.py", "espnet_ee/decode/reading.py"]
MEMORY = 8 << 30
"""Bytes that a mutant may take: a loop that never ends often collects something."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_PAIRS = "min max|any all|minimum maximum|argmin argmax|floor ceil|nanmin nanmax|nanargmin nanargmax|left right|mean sum"
NAMES = {word: other for pair in _PAIRS.split("|") for word, other in (pair.split(), pair.split()[::-1])}
"""Functions, methods and the sides of ``searchsorted`` that are easily taken for each other."""


@dataclass(frozen=True)
class Mutant:
    """A file with one thing changed."""

    path: Path  # relative to the checkout
    line: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        """Names the mutant as long as its file stays the same."""
        return hashlib.sha256(f"{self.path}\n{self.source}".encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before}  =>  {self.after}"


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place by mistake."""
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                changed = copy.deepcopy(node)
                changed.ops[number] = other()
                yield changed
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from map(ast.Constant, _constants(node.value))
    elif isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
        yield ast.Name(NAMES[node.id], node.ctx)
    elif isinstance(node, ast.Attribute) and node.attr in NAMES and isinstance(node.ctx, ast.Load):
        yield ast.Attribute(node.value, NAMES[node.attr], node.ctx)
    else:
        yield from _statements(node)


def _constants(value: object) -> Iterator[object]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield value + 1
    elif isinstance(value, str) and value in NAMES:
        yield NAMES[value]


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Conditions turned round, bounds of slices off by one, loops that end at once, calls left out."""
    if isinstance(node, (ast.If, ast.IfExp)) and not isinstance(node.test, (ast.UnaryOp, ast.Compare)):
        changed = copy.copy(node)
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield changed
    elif isinstance(node, ast.Slice):
        for bound in ("lower", "upper"):
            value = getattr(node, bound)
            if value is not None and not isinstance(value, (ast.Constant, ast.UnaryOp)):
                changed = copy.copy(node)
                setattr(changed, bound, ast.BinOp(value, ast.Add(), ast.Constant(1)))
                yield changed
    elif isinstance(node, ast.Continue):
        yield ast.Break()
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()


def mutants(path: Path, root: Path = ROOT) -> Iterator[Mutant]:
    """All mutants of a file, in the order of its lines.

    Args:
        path: relative to ``root``.
    """
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    for parent, field, index, node in _places(tree):
        for variant in variants(node):
            _put(parent, field, index, variant)
            line = getattr(node, "lineno", 0) or getattr(parent, "lineno", 0)
            yield Mutant(path, line, _short(node), _short(variant), ast.unparse(ast.fix_missing_locations(tree)))
            _put(parent, field, index, node)


def _places(parent: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node below that is code: no annotation, no docstring, no text of a message."""
    if isinstance(parent, (ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom)):
        return
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "bases", "ctx", "op", "ops", "type_params"):
            continue
        children = [(None, value)] if isinstance(value, ast.AST) else enumerate(value) if isinstance(value, list) else []
        for index, node in children:
            if isinstance(node, ast.AST):
                yield parent, field, index, node
                yield from _places(node)


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _short(node: ast.AST) -> str:
    """A node's first line of code."""
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(node)))
    return text.split("\n", 1)[0][:100]


def imports_of(path: Path) -> set[str]:
    """The dotted names that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@cache
def is_heavy(test: Path) -> bool:
    """Whether a test file loads torch or starts commands."""
    return test.parent.name in ("cli", "plugin", "recipes") or any(
        name.split(".")[0] in ("torch", "espnet2") or name.startswith("tests.tiny") for name in imports_of(test)
    )


def relevant_tests(path: Path, root: Path) -> list[str]:
    """The test files for a file of the package: those that import it, and the others of its room.

    Files that load torch, or try the product from outside, come last: they are asked what the others let pass.

    Args:
        path: relative to ``root``, as the answers are.
    """
    module = ".".join(path.with_suffix("").parts)
    files = sorted((root / "tests").rglob("test_*.py"))
    tests = [file for file in files if file.parent.name == path.parent.name or module in imports_of(file)]
    return [str(file.relative_to(root)) for file in sorted(tests, key=is_heavy)]


class Laboratory:
    """A copy of the checkout in which mutants are tested.

    Args:
        folder: where the copy is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("espnet_ee", "tests", "tools", "egs", "pyproject.toml"):
            source = ROOT / name
            if source.is_dir():
                skip = shutil.ignore_patterns("__pycache__", "venv", "exp", "data", "dump", "downloads", "*.log")
                # The package has rooms of these names.
                skip = shutil.ignore_patterns("__pycache__") if name in ("espnet_ee", "tests") else skip
                shutil.copytree(source, folder / name, symlinks=True, ignore=skip)
            else:
                shutil.copy2(source, folder)
        self.seconds: dict[str, float] = {}

    def load(self, tests: Iterable[str]) -> None:
        """Loads what these tests load, where that takes long."""
        for name in ["numpy", "scipy.optimize", "yaml", "pytest", "hypothesis", "matplotlib", "jiwer"]:
            importlib.import_module(name)
        if any(is_heavy(ROOT / test) for test in tests):
            importlib.import_module("torch")
            importlib.import_module("espnet2.tasks.asr")

    def check(self, mutant: Mutant, tests: list[str]) -> str:
        """Tests a mutant: ``killed``, ``timeout`` (as good) or ``survived``."""
        file = self.folder / mutant.path
        original = file.read_bytes()
        for heavy in (False, True):
            # The quickest first, for most mutants are noticed by many tests.
            asked = sorted((test for test in tests if is_heavy(ROOT / test) == heavy), key=self.seconds_of)
            if not asked:
                continue
            file.write_text(mutant.source, encoding="utf-8")
            try:
                status = self._run(asked, 10 + 4 * sum(map(self.seconds_of, asked)))
            finally:
                file.write_bytes(original)
            if status != 0:
                return "timeout" if status is None else "killed"
        return "survived"

    def seconds_of(self, test: str) -> float:
        """How long a test file takes when nothing is wrong."""
        if test not in self.seconds:
            begin = time.monotonic()
            if self._run([test], 1800) != 0:
                sys.exit(f"mutate.py: error: the tests fail as it is: {test}")
            self.seconds[test] = time.monotonic() - begin
        return self.seconds[test]

    def _run(self, tests: list[str], limit: float) -> int | None:
        """Runs tests in a fork. Returns pytest's status, or None if they took longer than ``limit`` seconds."""
        child = os.fork()
        if child == 0:
            self._test(tests)
        end = time.monotonic() + limit
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _test(self, tests: list[str]) -> None:
        """The fork's life: it never returns."""
        status = 99
        try:
            os.setsid()
            os.chdir(self.folder)
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            sys.path.insert(0, str(self.folder))
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            os.environ["PYTHONPATH"] = str(self.folder)
            import pytest
            from hypothesis import Phase, settings

            # One counterexample is enough; a smaller one is not looked for.
            settings.register_profile("mutate", phases=(Phase.explicit, Phase.generate), database=None, deadline=None)
            settings.load_profile("mutate")
            options = ["-x", "-q", "-m", "not process", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
            loaded = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is, before the fork
            status = int(pytest.main([*options, *loaded, *tests]))
        finally:
            os._exit(status)


def select(sources: list[str], sample: int | None, seed: int) -> list[Mutant]:
    """The mutants of files and folders, each once; a random ``sample`` of them if asked for."""
    paths = sorted({path for source in sources for path in _files(ROOT / source)})
    unique = {mutant.key: mutant for path in paths for mutant in mutants(path.relative_to(ROOT))}
    found = list(unique.values())
    if sample is not None and sample < len(found):
        found = [found[number] for number in sorted(random.Random(seed).sample(range(len(found)), sample))]
    return found


def _files(source: Path) -> list[Path]:
    if not source.exists():
        sys.exit(f"mutate.py: error: {source}: no such file or folder")
    return [path for path in ([source] if source.is_file() else source.rglob("*.py")) if path.name != "__init__.py"]


def read_results(out: Path) -> dict[str, str]:
    """Fates of the mutants that an earlier run tested."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return {row["key"]: row["fate"] for row in map(json.loads, lines)}


def examine(candidates: list[Mutant], results: dict[str, str], out: Path, seconds: float) -> None:
    """Tests the mutants that have no result yet, and writes each result when it is there."""
    end = time.monotonic() + seconds
    tests = {path: relevant_tests(path, ROOT) for path in {mutant.path for mutant in candidates}}
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder, out.open("a", encoding="utf-8") as stream:
        laboratory = Laboratory(Path(folder))
        laboratory.load({test for files in tests.values() for test in files})
        for mutant in candidates:
            if mutant.key in results or not tests[mutant.path]:
                continue
            if time.monotonic() > end:
                break
            fate = results[mutant.key] = laboratory.check(mutant, tests[mutant.path])
            print(json.dumps({"key": mutant.key, "fate": fate, "mutant": str(mutant)}), file=stream, flush=True)
            print("." if fate == "killed" else f"\n{fate}: {mutant}\n", end="", flush=True)


def main() -> None:
    """Parses the command line, tests, and lists the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=SOURCES, help=f"files or folders (default: {' '.join(SOURCES)})")
    parser.add_argument("--sample", type=int, metavar="N", help="test N random mutants (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time (default: never)")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"), help="results; a run goes on where it was stopped")
    parser.add_argument("--list", action="store_true", help="show the mutants and test nothing")
    options = parser.parse_args()
    candidates = select(options.sources, options.sample, options.seed)
    if options.list:
        print(*candidates, sep="\n")
        return
    results = read_results(options.out)
    examine(candidates, results, options.out, options.seconds)
    fates = [results.get(mutant.key, "not tested") for mutant in candidates]
    print("\n" + ", ".join(f"{fates.count(fate)} {fate}" for fate in sorted(set(fates))))
    print(*(f"survived: {mutant}" for mutant, fate in zip(candidates, fates, strict=True) if fate == "survived"), sep="\n")


if __name__ == "__main__":
    main()
