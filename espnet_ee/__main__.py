"""Launcher: runs a stock ESPnet command with the early-exit classes registered.

    python -m espnet_ee -m espnet2.bin.asr_train --config conf/train_ee_conformer.yaml ...

so that ESPnet's own ``asr.sh --python "python3 -m espnet_ee"`` works unchanged. The stock module is imported,
given our task, and its ``main()`` called (``runpy`` would lose the registration in the spawned children of DDP).
"""

from __future__ import annotations

import importlib
import runpy
import sys
import warnings
from pathlib import Path

from espnet_ee.errors import UsageError, run

USAGE = "usage: python -m espnet_ee -m espnet2.bin.MODULE ARGUMENTS... (or SCRIPT.py ARGUMENTS...)"


def main() -> None:
    """Registers the plug-in, then hands over to the module named after ``-m``."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(USAGE)
        return
    if sys.argv[1:] and sys.argv[1].endswith(".py"):
        _run_script(sys.argv[1:])
        return
    if len(sys.argv) < 3 or sys.argv[1] != "-m":
        raise UsageError(USAGE)
    name = sys.argv[2]
    if not name.startswith("espnet2.bin."):
        raise UsageError(f"{name}: only ESPnet's own commands (espnet2.bin.*) can be launched; {USAGE}")
    # ESPnet warns of its own deprecations by the dozen before the first line that matters.
    warnings.filterwarnings("ignore", category=FutureWarning, module="espnet.*")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UsageError(f"{name}: no such module in the installed ESPnet") from None
    # launch, pack, tokenize_text ... build no model: they need not wait seconds for ESPnet's ASR task.
    if "espnet2.tasks.asr" in sys.modules:
        from espnet_ee.plugin.task import adopt  # registers

        adopt(module)
    sys.argv = [name, *sys.argv[3:]]
    if name == "espnet2.bin.asr_inference":
        from espnet_ee.espnet2 import main as infer

        infer(module)
    else:
        module.main()


def _run_script(words: list[str]) -> None:
    """Runs a recipe's own script, which asr.sh starts with the same ``--python``, as ``python SCRIPT.py`` would."""
    script = Path(words[0])
    if not script.is_file():
        raise UsageError(f"{script}: no such file; {USAGE}")
    importlib.import_module("espnet_ee.plugin.task")  # registers: the script may train
    sys.argv, sys.path[0] = words, str(script.parent.resolve())
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    run(main)
