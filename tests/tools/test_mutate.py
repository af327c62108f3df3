"""tools/mutate.py: what it changes, and which tests it asks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mutate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    assert spec and spec.loader
    module = sys.modules["mutate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("a < b", {"a <= b", "a > b"}),
        ("a + b", {"a - b"}),
        ("a and not b", {"a or not b", "a and b"}),
        ("y = max(a, b)", {"y = min(a, b)"}),
        ("x[1]", {"x[2]"}),
        ("x[:n]", {"x[:n + 1]"}),
        ("x if y else z", {"x if not y else z"}),
        ("f(x.argmin(), flag=True)", {"f(x.argmax(), flag=True)", "f(x.argmin(), flag=False)", "pass"}),
        ("raise ValueError(f'{a + 1}')", set()),
        ("def f(x: int | None = None) -> int | None:\n    'A text.'\n    return x", set()),
    ],
)
def test_each_mistake_is_made_once(mutate: ModuleType, tmp_path: Path, code: str, changed: set[str]) -> None:
    (tmp_path / "x.py").write_text(code, encoding="utf-8")
    sources = [mutant.source for mutant in mutate.mutants(Path("x.py"), tmp_path)]
    assert sorted(sources) == sorted(changed)


def test_a_file_is_tested_by_those_that_import_it_first(mutate: ModuleType) -> None:
    tests = mutate.relevant_tests(Path("espnet_ee/policy/budget.py"), ROOT)
    assert tests[0] == "tests/policy/test_budget.py" and "tests/policy/test_policy_table.py" in tests
