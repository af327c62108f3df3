"""Launcher: runs a stock ESPnet command with the early-exit classes registered.

    python -m espnet_ee -m espnet2.bin.asr_train --config conf/train_ee_conformer.yaml ...

so that ESPnet's own ``asr.sh --python "python3 -m espnet_ee"`` works unchanged. The stock module is imported,
given our task, and its ``main()`` called (``runpy`` would lose the registration in the spawned children of DDP).
"""

from __future__ import annotations

import importlib
import sys
import warnings

from espnet_ee.errors import UsageError, run

USAGE = "usage: python -m espnet_ee -m espnet2.bin.MODULE ARGUMENTS..."


def main() -> None:
    """Registers the plug-in, then hands over to the module named after ``-m``."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(USAGE)
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
    module.main()


if __name__ == "__main__":
    run(main)
