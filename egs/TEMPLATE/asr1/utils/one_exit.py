"""How a configuration is trained with fewer blocks and one exit, after the last: the separately trained depths of a comparison.

Called by run_depths.sh: ``one_exit.py CONFIG MODEL DEPTHS WORD...``: --asr_config, --inference_asr_model, the depths separated by
blanks (empty: the configuration's exits), and the words of --asr_args. Prints a line for every depth, with tabs between: the
depth, the words of its --asr_args, and its model file (empty: the default).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from identity import encoder_of, group

from espnet_ee.errors import UsageError, run
from espnet_ee.files import read_yaml

_EXIT = re.compile(r"(?<=_exit)\d+")


def wanted_depths(text: str, path: str, encoder: dict[str, Any]) -> list[int]:
    """The depths of the command line, or all exits of the configuration.

    Raises:
        UsageError: none are said anywhere, or one is no number of a block.
    """
    words = text.split() or encoder.get("exit_layers") or []
    if not words:
        raise UsageError(f"{path}: its encoder_conf has no exit_layers; name the depths by --depths")
    depths = []
    for word in words:
        blocks = encoder.get("num_blocks") or 10**9
        if not re.fullmatch("[1-9][0-9]*", str(word)) or int(word) > blocks:
            raise UsageError(f"--depths: {word} is no number of a block of {path} ({blocks} blocks)")
        depths.append(int(word))
    return list(dict.fromkeys(depths))


def arguments(depth: int, config: dict[str, Any], encoder: dict[str, Any]) -> Iterator[str]:
    """The words that make a configuration one of this depth; the blocks that stay are as they were."""
    yield from ("--encoder_conf", f"num_blocks={depth}", "--encoder_conf", f"exit_layers=[{depth}]")
    if half_rate := encoder.get("half_rate"):
        first, last = half_rate
        yield from ("--encoder_conf", f"half_rate=[{first},{min(last, depth)}]" if first <= depth else "half_rate=[]")
    model = config.get("model_conf") or {}
    if isinstance(model.get("exit_weights"), list):
        yield from ("--model_conf", "exit_weights=sum")
    terms = model.get("exit_terms") or {}
    if any(name.endswith("distillation") for name in terms):
        # There is no exit below that could be taught.
        left = {name: weight for name, weight in terms.items() if not name.endswith("distillation")}
        yield from ("--model_conf", "exit_terms=" + json.dumps(left, separators=(",", ":")))
    criteria = config.get("best_model_criterion") or []
    if any(_EXIT.search(str(word)) for criterion in criteria for word in criterion):
        yield "--best_model_criterion"
        yield from (of_exit(",".join(criterion), depth) for criterion in criteria)


def of_exit(name: str, depth: int) -> str:
    """What is measured at some exit (``valid.cer_exit12.ave.pth``), measured at the one."""
    return _EXIT.sub(f"{depth:02d}", name)


def lines(path: str, model_file: str, depths: str, words: Sequence[str]) -> Iterator[str]:
    """The lines (see the head of this file)."""
    config = read_yaml(path, "give another --asr_config", allow_empty=True) if path else {}
    options = group(list(words))
    encoder = encoder_of(config, options)["encoder_conf"]
    for depth in wanted_depths(depths, path or "--asr_args", encoder):
        added = arguments(depth, config, encoder)
        yield "\t".join((str(depth), " ".join((*words, *added)), of_exit(model_file, depth)))


def main() -> None:
    path, model_file, depths, *words = sys.argv[1:]
    print("\n".join(lines(path, model_file, depths, words)))


if __name__ == "__main__":
    sys.argv[0] = "run_depths.sh"
    run(main)
