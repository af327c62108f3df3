"""Replays exit policies at any thresholds on an evidence table: nothing is decoded again.

The table is one of --all_exits true (with --text), or of the import format that espnet_ee/score/imported.py describes.
Prints a table with tabs between its columns: policy, threshold, WER in per cent, errors, words, mean exit layer,
MACs per second of audio, and the measured real-time factor where the times are known.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from espnet_ee.errors import UsageError, run
from espnet_ee.files import atomic_write
from espnet_ee.policy.base import ExitPolicy, ThresholdPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.registry import build_policy
from espnet_ee.score.calibrate import plain_policy
from espnet_ee.score.grid import Grid, Outcome, candidate_thresholds, exits_of, levels, outcome, read_grid, sweep

COLUMNS = ("policy", "threshold", "wer", "errors", "words", "depth", "macs_per_second", "rtf")


def get_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evidence", type=Path, required=True, help="evidence table")
    parser.add_argument("--text", type=Path, help="its references (not for an imported table)")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="NAME[=T,T,...]",
        help="policy, perhaps with thresholds (of fixed: layers); may be given again",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="YAML[=T,T,...]",
        help="decoding configuration, for a policy with more settings (learned); may be given again",
    )
    parser.add_argument("--thresholds", type=int, default=20, help="thresholds of a policy that came without (default 20)")
    parser.add_argument("--output", type=Path, help="file to write (default: print)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, replays, prints."""
    options = get_parser().parse_args(arguments)
    if not options.policy and not options.config:
        raise UsageError("give at least one --policy or --config")
    if options.thresholds < 1:
        raise UsageError(f"--thresholds is {options.thresholds}; give 1 or more")
    grid = read_grid(options.evidence, options.text)
    lines = [line for word in options.policy for line in _replay_name(grid, word, options.thresholds)]
    lines += [line for word in options.config for line in _replay_config(grid, word, options.thresholds)]
    if options.output:
        with atomic_write(options.output) as stream:
            _print(lines, stream)
    else:
        _print(lines, sys.stdout)


def _print(lines: Sequence[Sequence[str]], stream: TextIO) -> None:
    for line in [COLUMNS, *lines]:
        print("\t".join(line), file=stream)


def _numbers(word: str) -> tuple[str, list[float]]:
    """What stands before the last equals sign, and the numbers after it."""
    name, _, numbers = word.rpartition("=") if "=" in word else (word, "", "")
    try:
        found = [float(number) for number in numbers.split(",") if number]
    except ValueError:
        found = [math.nan]
    if any(map(math.isnan, found)):
        raise UsageError(f"{word!r}: the thresholds are not numbers, separated by commas")
    return name, found


def _replay_name(grid: Grid, word: str, count: int) -> Iterator[list[str]]:
    name, thresholds = _numbers(word)
    if name == FixedExitPolicy.name:
        yield from _replay_fixed(grid, thresholds or grid.layers.tolist())
    else:
        yield from _replay(grid, plain_policy(grid, name), thresholds, count)


def _replay_config(grid: Grid, word: str, count: int) -> Iterator[list[str]]:
    path, thresholds = (word, []) if Path(word).is_file() else _numbers(word)
    policy = DecodingConfig.read(path).policy_for(grid.table.exit_layers)
    if isinstance(policy, FixedExitPolicy):
        yield from _replay_fixed(grid, thresholds or [policy.exit_layer])
    elif isinstance(policy, ThresholdPolicy):
        yield from _replay(grid, policy, thresholds or [policy.threshold], count)
    else:
        yield _replay_once(grid, policy, "")


def _replay_fixed(grid: Grid, layers: Sequence[float]) -> Iterator[list[str]]:
    for layer in layers:
        # As text: 4.7 is no layer, and must not pass for 4.
        yield _replay_once(grid, build_policy(FixedExitPolicy.name, {"exit_layer": f"{layer:g}"}), f"{layer:g}")


def _replay(grid: Grid, policy: ThresholdPolicy, thresholds: Sequence[float], count: int) -> Iterator[list[str]]:
    tried = thresholds or candidate_thresholds(policy, levels(grid, policy), count)
    for value, found in zip(tried, sweep(grid, policy, tried), strict=True):
        yield _line(policy.name, repr(float(value)), found)


def _replay_once(grid: Grid, policy: ExitPolicy, threshold: str) -> list[str]:
    return _line(policy.name, threshold, outcome(grid, exits_of(grid, policy), policy.needs_every_exit))


def _line(name: str, threshold: str, found: Outcome) -> list[str]:
    rtf = "" if np.isnan(found.rtf) else f"{found.rtf:.5f}"
    counts = (f"{found.errors.sum():g}", str(found.words.sum()))
    return [name, threshold, f"{found.wer:.4f}", *counts, f"{found.depth:.4f}", f"{found.macs_per_second:.6g}", rtf]


if __name__ == "__main__":
    run(main)
