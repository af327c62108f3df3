"""The layout's rules, read off the source: who may import whom, how long things get, what is never called.

Every rule is a function from one parsed file to its breaches, so that the rules themselves are tested, too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "espnet_ee"
# The rooms of the house, from the ground up: a file imports its own room and lower floors, never upwards or sideways.
FLOORS = {
    **dict.fromkeys(("errors", "text", "values", "compute", "subsampling"), 0),  # the standard library only
    **dict.fromkeys(("files", "hub", "host", "exported"), 1),
    **dict.fromkeys(("kaldi", "policy", "frontend"), 2),
    **dict.fromkeys(("search", "data", "score", "encoder"), 3),
    "model": 4,
    **dict.fromkeys(("decode", "plugin"), 5),
    **dict.fromkeys(("store", "runtime"), 6),
    **dict.fromkeys(("api", "espnet2"), 7),
    **dict.fromkeys(("espnet3", "__main__", "cli"), 8),
}
LIGHT = (
    "espnet_ee.policy",
    "espnet_ee.search",
    "espnet_ee.score",
    "espnet_ee.decode.loop",
    "espnet_ee.decode.reading",
    "espnet_ee.decode.recognition",
    "espnet_ee.decode.session",
    "espnet_ee.decode.stream",
    "espnet_ee.runtime",
)
HEAVY = ("torch", "torchaudio", "espnet", "espnet2", "espnet3", "transformers")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True)
class Source:
    """One file of the package: dotted module name, text, syntax tree."""

    module: str
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, module: str, text: str) -> Source:
        return cls(module, text, ast.parse(text))

    def within(self, *packages: str) -> bool:
        return any(is_within(self.module, f"espnet_ee.{package}") for package in packages)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def read_sources() -> dict[str, Source]:
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[module] = Source.parse(module, path.read_text(encoding="utf-8"))
    return sources


SOURCES = read_sources()


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, those inside functions too; ``from a import b`` gives a and a.b."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "<relative>"
            else:
                yield node.lineno, node.module or ""
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def called_name(call: ast.Call) -> str:
    return ast.unparse(call.func)


# --- the rules: each yields (line, what) ------------------------------------------------------------------------------

Breaches = Iterator[tuple[int, str]]


def no_relative_imports(source: Source) -> Breaches:
    """Rules on who imports whom can be read off a line only if the line names the whole module."""
    yield from ((line, "relative import") for line, name in imports(source) if name == "<relative>")


def nothing_imports_upwards(source: Source) -> Breaches:
    """Data flows one way; a room that reaches up, even inside a function, cannot be read, tested or shipped without it."""
    room = room_of(source.module)
    for line, name in imports(source):
        other = room_of(name)
        if other is None or other == room or room is None:
            continue
        if FLOORS[other] >= FLOORS[room]:
            yield line, f"{room} (floor {FLOORS[room]}) imports {name} (floor {FLOORS[other]})"


def room_of(module: str) -> str | None:
    """The room a module lies in; None for other packages, and for what the package's top gives (its version)."""
    parts = module.split(".")
    return parts[1] if parts[0] == "espnet_ee" and len(parts) > 1 and parts[1] in FLOORS else None


def every_file_has_a_room(source: Source) -> Breaches:
    """A file outside of the table of floors is under no rule of who imports whom."""
    if source.module != "espnet_ee" and room_of(source.module) is None:
        yield 1, "lies in none of the rooms of FLOORS"


def policy_and_score_are_light(source: Source) -> Breaches:
    """An edge runtime needs policies without torch, and a scorer runs where no ESPnet is installed."""
    if any(is_within(source.module, package) for package in LIGHT):
        yield from ((line, f"imports {name}") for line, name in imports(source) if name.split(".")[0] in HEAVY)


def espnet_stays_behind_its_packages(source: Source) -> Breaches:
    """ESPnet changes under us: only these rooms may have to follow it."""
    if not source.within("host", "frontend", "encoder", "model", "plugin", "data", "store", "espnet3"):
        for line, name in imports(source):
            if name.split(".")[0] in ("espnet", "espnet2", "espnet3"):
                yield line, f"imports {name}"


def transformers_stays_behind_its_encoder(source: Source) -> Breaches:
    """Its import takes seconds, and who trains or reads another model need not have it."""
    if not source.module.startswith("espnet_ee.encoder.hf_"):
        yield from ((line, f"imports {name}") for line, name in imports(source) if is_within(name, "transformers"))
    if not source.module.startswith("espnet_ee.encoder.hf"):
        behind = "espnet_ee.encoder.hf_"
        yield from ((line, f"imports {name}") for line, name in imports(source) if name.startswith(behind))


def only_compat_knows_two_versions(source: Source) -> Breaches:
    """A third ESPnet version must be an edit of one file: host/compat.py alone names what differs."""
    if source.module == "espnet_ee.host.compat":
        return
    for line, name in imports(source):
        if is_within(name, "espnet.nets") or is_within(name, "espnet2.legacy") or is_within(name, "espnet"):
            yield line, f"imports {name}; take it from espnet_ee.host.compat"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("espnet.__version__", "espnet2.__version__"):
            yield node.lineno, "asks for ESPnet's version; put the difference into espnet_ee.host.compat"
        if isinstance(node, ast.Call) and called_name(node).split(".")[-1] in ("version", "distribution"):
            if any(isinstance(argument, ast.Constant) and argument.value == "espnet" for argument in node.args):
                yield node.lineno, "asks for ESPnet's version; put the difference into espnet_ee.host.compat"


def files_are_short(source: Source) -> Breaches:
    """A file one cannot read in a sitting hides a second purpose: split it."""
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield lines, f"{lines} lines, at most {MAX_FILE_LINES}"


def functions_are_short(source: Source) -> Breaches:
    """A function that does not fit on a screen does more than its name says: split it."""
    for function in functions(source):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield function.lineno, f"{function.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"


def nothing_is_called_utils(source: Source) -> Breaches:
    """A file called utils has no subject, so everything ends up in it: name it after what it does."""
    if source.module.split(".")[-1] in ("utils", "util", "helpers", "misc", "common"):
        yield 1, "no subject in its name"


def everything_is_annotated(source: Source) -> Breaches:
    """Shapes and types are the contract between parts written apart; an unannotated one is a guess."""
    for function in functions(source):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        for argument in named:
            if argument and argument.annotation is None and argument.arg not in ("self", "cls"):
                yield function.lineno, f"{function.name}: no annotation of {argument.arg}"
        if function.returns is None:
            yield function.lineno, f"{function.name}: no annotation of what it returns"


def nothing_runs_data_as_code(source: Source) -> Breaches:
    """A configuration, a checkpoint or a data file from a stranger must not be able to run code."""
    forbidden = (
        "eval",
        "exec",
        "compile",
        "__import__",
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
        "os.system",
    )
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = called_name(node)
        if name in forbidden or name.startswith(("pickle.", "cPickle.", "dill.", "marshal.", "shelve.")):
            yield node.lineno, f"calls {name}"
        if name == "torch.load" and not any(k.arg == "weights_only" and _is_true(k.value) for k in node.keywords):
            yield node.lineno, "calls torch.load without weights_only=True, which unpickles"
        if any(keyword.arg == "shell" and _is_true(keyword.value) for keyword in node.keywords):
            yield node.lineno, f"calls {name} with shell=True"
    for line, name in imports(source):
        if name in ("pickle.load", "pickle.loads", "pickle.dump", "pickle.dumps", "pickle.Unpickler"):
            yield line, f"imports {name}"


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


RULES: list[Callable[[Source], Breaches]] = [
    no_relative_imports,
    policy_and_score_are_light,
    nothing_imports_upwards,
    every_file_has_a_room,
    espnet_stays_behind_its_packages,
    transformers_stays_behind_its_encoder,
    only_compat_knows_two_versions,
    files_are_short,
    functions_are_short,
    nothing_is_called_utils,
    everything_is_annotated,
    nothing_runs_data_as_code,
]


def why(rule: Callable[[Source], Breaches]) -> str:
    return " ".join((rule.__doc__ or "").split())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds_in_the_package(rule: Callable[[Source], Breaches]) -> None:
    found = [f"  {source.module}, line {line}: {what}" for source in SOURCES.values() for line, what in rule(source)]
    if found:
        pytest.fail("\n".join([f"{rule.__name__} is broken.", f"Why it exists: {why(rule)}", *found]), pytrace=False)


def test_every_rule_says_why() -> None:
    assert all(why(rule) for rule in RULES)
    assert len(SOURCES) > 5  # or the package was not found


def chain_to_heavy(module: str, sources: dict[str, Source]) -> list[str] | None:
    """Shortest way from a module over the package's own imports to a heavy one."""
    waiting, seen = [[module]], {module}
    while waiting:
        chain = waiting.pop(0)
        # Importing a.b.c runs a/__init__.py and a/b/__init__.py first.
        parents = [chain[-1].rsplit(".", n)[0] for n in range(1, chain[-1].count(".") + 1)]
        # The package's top exports lazily: what its functions import is loaded by who asks for it.
        own = () if chain[-1] == "espnet_ee" else imports(sources[chain[-1]])
        for name in [*parents, *(name for _, name in own)]:
            if name.split(".")[0] in HEAVY:
                return [*chain, name]
            if name in sources and name not in seen:
                seen.add(name)
                waiting.append([*chain, name])
    return None


def test_policy_and_score_reach_nothing_heavy_over_others() -> None:
    light = [module for module in SOURCES if any(is_within(module, package) for package in LIGHT)]
    for module in light:
        chain = chain_to_heavy(module, SOURCES)
        assert chain is None, f"{' -> '.join(chain or ())}. Why it matters: {why(policy_and_score_are_light)}"


def test_importing_policy_and_score_loads_no_torch() -> None:
    """The proof by running: what third parties (jiwer, yaml) import counts, too."""
    light = [module for module in SOURCES if any(is_within(module, package) for package in LIGHT)]
    heavy = (*HEAVY, "matplotlib")  # the curve loads matplotlib when it draws, not before
    program = (
        f"import importlib, sys\nfor name in {light!r}: importlib.import_module(name)\n"
        f"print(*sorted({{name.split('.')[0] for name in sys.modules}} & set({heavy!r})))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"importing them loads {done.stdout}. Why it matters: {why(policy_and_score_are_light)}"


@pytest.mark.parametrize(
    ("rule", "module", "text"),
    [
        (no_relative_imports, "espnet_ee.policy.x", "from . import base"),
        (policy_and_score_are_light, "espnet_ee.policy.x", "import torch.nn"),
        (policy_and_score_are_light, "espnet_ee.score.x", "def f() -> None:\n    from espnet2.asr import ctc"),
        (nothing_imports_upwards, "espnet_ee.policy.x", "from espnet_ee.score.wer import count_errors"),
        (
            nothing_imports_upwards,
            "espnet_ee.decode.x",
            "def f() -> None:\n    from espnet_ee.store.package import load_package",
        ),
        (nothing_imports_upwards, "espnet_ee.score.x", "from espnet_ee.cli.main import main"),
        (nothing_imports_upwards, "espnet_ee.encoder.x", "from espnet_ee.data.audio import read_audio"),  # sideways
        (nothing_imports_upwards, "espnet_ee.model.x", "from espnet_ee.plugin import task"),
        (every_file_has_a_room, "espnet_ee.helpers.x", ""),
        (espnet_stays_behind_its_packages, "espnet_ee.decode.x", "from espnet2.asr.ctc import CTC"),
        (
            only_compat_knows_two_versions,
            "espnet_ee.model.x",
            "from espnet.nets.ctc_prefix_score import CTCPrefixScore",
        ),
        (transformers_stays_behind_its_encoder, "espnet_ee.encoder.hf", "def f() -> None:\n    import transformers"),
        (transformers_stays_behind_its_encoder, "espnet_ee.plugin.x", "from espnet_ee.encoder.hf_models import FAMILIES"),
        (only_compat_knows_two_versions, "espnet_ee.model.x", "from espnet2.legacy.nets import beam_search"),
        (only_compat_knows_two_versions, "espnet_ee.model.x", "import espnet2\nold = espnet2.__version__ < '2026'"),
        (
            only_compat_knows_two_versions,
            "espnet_ee.plugin.x",
            "from importlib.metadata import version\nversion('espnet')",
        ),
        (files_are_short, "espnet_ee.model.x", "a = 1\n" * 401),
        (functions_are_short, "espnet_ee.model.x", "def f() -> None:\n" + "    a = 1\n" * 60),
        (nothing_is_called_utils, "espnet_ee.model.utils", ""),
        (everything_is_annotated, "espnet_ee.model.x", "def f(a) -> None: ..."),
        (everything_is_annotated, "espnet_ee.model.x", "class A:\n    def f(self, *b: int): ..."),
        (nothing_runs_data_as_code, "espnet_ee.model.x", "eval('1')"),
        (nothing_runs_data_as_code, "espnet_ee.model.x", "import pickle\npickle.load(f)"),
        (nothing_runs_data_as_code, "espnet_ee.model.x", "torch.load(f)"),
        (nothing_runs_data_as_code, "espnet_ee.model.x", "yaml.load(f)"),
        (nothing_runs_data_as_code, "espnet_ee.model.x", "subprocess.run(c, shell=True)"),
    ],
)
def test_the_rules_find_what_they_forbid(rule: Callable[[Source], Breaches], module: str, text: str) -> None:
    assert list(rule(Source.parse(module, text)))


@pytest.mark.parametrize(
    ("rule", "module", "text"),
    [
        (policy_and_score_are_light, "espnet_ee.decode.x", "import torch"),
        (
            espnet_stays_behind_its_packages,
            "espnet_ee.data.x",
            "from espnet2.asr.frontend.default import DefaultFrontend",
        ),
        (only_compat_knows_two_versions, "espnet_ee.host.compat", "from espnet.nets import x"),
        (nothing_imports_upwards, "espnet_ee.encoder.x", "from espnet_ee.host.compat import LayerNorm"),
        (nothing_imports_upwards, "espnet_ee.store.x", "from espnet_ee import __version__"),
        (nothing_imports_upwards, "espnet_ee.cli.x", "from espnet_ee.cli.main import main\nimport torch"),
        (transformers_stays_behind_its_encoder, "espnet_ee.encoder.hf_models", "from transformers import WavLMModel"),
        (every_file_has_a_room, "espnet_ee.policy.entropy", ""),
        (functions_are_short, "espnet_ee.model.x", "def f() -> None:\n" + "    a = 1\n" * 59),
        (
            nothing_runs_data_as_code,
            "espnet_ee.model.x",
            "model.eval()\nyaml.safe_load(f)\ntorch.load(f, weights_only=True)",
        ),
    ],
)
def test_the_rules_allow_what_is_allowed(rule: Callable[[Source], Breaches], module: str, text: str) -> None:
    assert not list(rule(Source.parse(module, text)))


def test_a_chain_over_another_package_is_found() -> None:
    texts = {
        "espnet_ee": "",
        "espnet_ee.score": "",
        "espnet_ee.score.x": "import espnet_ee.text",
        "espnet_ee.text": "import torch",
    }
    sources = {module: Source.parse(module, text) for module, text in texts.items()}
    assert chain_to_heavy("espnet_ee.score.x", sources) == ["espnet_ee.score.x", "espnet_ee.text", "torch"]
    assert chain_to_heavy("espnet_ee.score", sources) is None
