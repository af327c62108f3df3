"""Replays exit policies at any thresholds on an evidence table: the engine of ``espnet-ee replay``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from espnet_ee.errors import UsageError
from espnet_ee.policy.base import ExitPolicy, ThresholdPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.registry import build_policy
from espnet_ee.score.calibrate import plain_policy
from espnet_ee.score.grid import Grid, candidate_thresholds, exits_of, levels, outcome, sweep
from espnet_ee.score.outcome import Outcome

COLUMNS = ("policy", "threshold", "wer", "errors", "words", "depth", "macs_per_second", "rtf")


def replay_table(grid: Grid, names: Sequence[str], configs: Sequence[str], count: int) -> str:
    """A table with tabs between its columns and a line for every policy and threshold.

    Args:
        grid: the set.
        names: policies, perhaps with thresholds (of ``fixed``: layers): ``entropy``, ``entropy=0.01,0.02``.
        configs: decoding configurations' files, likewise.
        count: thresholds of a policy that came without.

    Raises:
        UsageError: a name or a threshold is none, or nothing is to be replayed.
        UserError: a file is missing or broken, or a policy does not fit the set.
    """
    if not names and not configs:
        raise UsageError("give at least one --policy or --config")
    if count < 1:
        raise UsageError(f"--thresholds is {count}; give 1 or more")
    rows = [row for word in names for row in _replay_name(grid, word, count)]
    rows += [row for word in configs for row in _replay_config(grid, word, count)]
    return "".join("\t".join(row) + "\n" for row in [COLUMNS, *rows])


def _numbers(word: str) -> tuple[str, list[float]]:
    """What stands before the last equals sign, and the numbers after it."""
    name, _, numbers = word.rpartition("=") if "=" in word else (word, "", "")
    try:
        values = [float(number) for number in numbers.split(",") if number]
    except ValueError:
        values = [math.nan]
    if any(map(math.isnan, values)):
        raise UsageError(f"{word!r}: the thresholds are not numbers, separated by commas")
    return name, values


def _replay_name(grid: Grid, word: str, count: int) -> Iterator[Sequence[str]]:
    name, thresholds = _numbers(word)
    if name == FixedExitPolicy.name:
        yield from _replay_fixed(grid, thresholds or grid.layers.tolist())
    else:
        yield from _replay(grid, plain_policy(grid, name), thresholds, count)


def _replay_config(grid: Grid, word: str, count: int) -> Iterator[Sequence[str]]:
    path, thresholds = (word, []) if Path(word).is_file() else _numbers(word)
    policy = DecodingConfig.read(path).policy_for(grid.table.exit_layers)
    if isinstance(policy, FixedExitPolicy):
        yield from _replay_fixed(grid, thresholds or [policy.exit_layer])
    elif isinstance(policy, ThresholdPolicy):
        yield from _replay(grid, policy, thresholds or [policy.threshold], count)
    else:
        yield _replay_once(grid, policy, "")


def _replay_fixed(grid: Grid, layers: Sequence[float]) -> Iterator[Sequence[str]]:
    for layer in layers:
        # As text: 4.7 is no layer, and must not pass for 4.
        yield _replay_once(grid, build_policy(FixedExitPolicy.name, {"exit_layer": f"{layer:g}"}), f"{layer:g}")


def _replay(grid: Grid, policy: ThresholdPolicy, thresholds: Sequence[float], count: int) -> Iterator[Sequence[str]]:
    tried = thresholds or candidate_thresholds(policy, levels(grid, policy), count)
    for value, reached in zip(tried, sweep(grid, policy, tried), strict=True):
        yield _row(policy.name, repr(float(value)), reached)


def _replay_once(grid: Grid, policy: ExitPolicy, threshold: str) -> Sequence[str]:
    return _row(policy.name, threshold, outcome(grid, exits_of(grid, policy), policy.needs_every_exit))


def _row(name: str, threshold: str, reached: Outcome) -> Sequence[str]:
    rtf = "" if np.isnan(reached.rtf) else f"{reached.rtf:.5f}"
    counts = (f"{reached.errors.sum():g}", f"{reached.lengths.sum():g}")
    return name, threshold, f"{reached.wer:.4f}", *counts, f"{reached.depth:.4f}", f"{reached.macs_per_second:.6g}", rtf
