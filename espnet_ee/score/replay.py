"""Replays exit policies at any thresholds on an evidence table: the engine of ``espnet-ee replay``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from espnet_ee.errors import UsageError, UserError
from espnet_ee.policy.base import ExitPolicy, ThresholdPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.registry import build_policy
from espnet_ee.score.calibrate import plain_policy
from espnet_ee.score.grid import Grid, candidate_thresholds, exits_of, levels, policy_outcome, sweep
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
    policies = [_by_name(grid, word) for word in names] + [_by_file(grid, word) for word in configs]
    rows = [row for policy, thresholds in policies for row in _rows(grid, policy, thresholds, count)]
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


def _by_name(grid: Grid, word: str) -> tuple[ExitPolicy, list[float]]:
    name, thresholds = _numbers(word)
    if name == FixedExitPolicy.name:
        return FixedExitPolicy(int(grid.layers[-1])), thresholds or grid.layers.tolist()
    return _asked(plain_policy(grid, name), thresholds)


def _by_file(grid: Grid, word: str) -> tuple[ExitPolicy, list[float]]:
    path, thresholds = (word, []) if Path(word).is_file() else _numbers(word)
    policy = DecodingConfig.read(path).policy_for(grid.table.exit_layers)
    own = policy.exit_layer if isinstance(policy, FixedExitPolicy) else getattr(policy, "threshold", math.nan)
    return _asked(policy, thresholds) if thresholds else (policy, [own])


def _asked(policy: ExitPolicy, thresholds: list[float]) -> tuple[ExitPolicy, list[float]]:
    """Both. Raises UsageError for a threshold that the policy cannot have."""
    try:
        for value in thresholds:
            if isinstance(policy, ThresholdPolicy):
                replace(policy, threshold=value).check_threshold()
    except UserError as error:
        raise UsageError(str(error)) from None
    return policy, thresholds


def _rows(grid: Grid, policy: ExitPolicy, thresholds: Sequence[float], count: int) -> Iterator[Sequence[str]]:
    if isinstance(policy, ThresholdPolicy):
        thresholds = thresholds or candidate_thresholds(policy, levels(grid, policy), count)
        for value, reached in zip(thresholds, sweep(grid, policy, thresholds), strict=True):
            yield _row(policy.name, repr(float(value)), reached)
        return
    for value in thresholds:
        if isinstance(policy, FixedExitPolicy):
            # As text: 4.7 is no layer, and must not pass for 4.
            policy = build_policy(FixedExitPolicy.name, {"exit_layer": f"{value:g}"})
        reached = policy_outcome(grid, exits_of(grid, policy), policy)
        yield _row(policy.name, "" if math.isnan(value) else f"{value:g}", reached)


def _row(name: str, threshold: str, reached: Outcome) -> Sequence[str]:
    rtf = "" if math.isnan(reached.rtf) else f"{reached.rtf:.5f}"
    counts = (f"{reached.errors.sum():g}", f"{reached.lengths.sum():g}")
    return name, threshold, f"{reached.wer:.4f}", *counts, f"{reached.depth:.4f}", f"{reached.macs_per_second:.6g}", rtf
