#!/usr/bin/env python3
"""What the learned policy gains over one entropy threshold, and how many development utterances that takes.

    python tools/bench_policy.py --evidence exp/.../decode_every_exit/dev/evidence.tsv --text dump/raw/dev/text [--fit 80 160]

Of utterances that the model was not trained on, some speakers are drawn, the policies calibrated on them as in stage 12, and
measured on the others, again and again. First table: error rate of `learned` less that of `entropy` and less that of drawing
between fixed exits, at the same compute, in points of per cent. Second: what was lost on the others, relative to the final
exit, when a loss was asked for. A speaker is what stands before the first hyphen of an utterance's id.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from espnet_ee.errors import UsageError, run
from espnet_ee.score.calibrate import Target, calibrate, make_families
from espnet_ee.score.fit import DEFAULT_FEATURES
from espnet_ee.score.grid import Grid, fixed_outcomes, read_grid, sweep
from espnet_ee.score.outcome import at_cost

NAMES = ("entropy", "learned")
LOSSES = (1, 5, 10)
Gains = tuple[list[float], list[float], list[list[float]]]  # over entropy and over fixed by depth; loss by policy and target


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", type=Path, required=True, help="evidence table with every exit")
    parser.add_argument("--text", type=Path, help="its references; none for a table of the import format")
    parser.add_argument(
        "--fit", type=int, nargs="+", help="utterances to calibrate on, at least (default: a quarter and a half of the table's)"
    )
    parser.add_argument("--repeats", type=int, default=30, help="drawings of speakers")
    return parser.parse_args(words)


def draw(speakers: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """A mask (N,) of the utterances of speakers drawn until there are enough."""
    mask = np.zeros(len(speakers), dtype=bool)
    for speaker in random.permutation(np.unique(speakers)):
        if mask.sum() >= count:
            break
        mask |= speakers == speaker
    return mask


def compared_depths(layers: np.ndarray) -> np.ndarray:
    """Where curves are compared (2K - 3,): at the exits between the first and the last of K, and midway between neighbours."""
    return np.linspace(layers[0], layers[-1], 2 * len(layers) - 1)[1:-1]


def gains(dev: Grid, test: Grid) -> Gains:
    """Calibrates on one set, measures on the other."""
    families = make_families(dev, NAMES, DEFAULT_FEATURES)
    entropy, learned = curves = [
        sweep(test, family.policies[0], [policy.threshold for policy in family.policies]) for family in families
    ]
    fixed, final = fixed_outcomes(test), fixed_outcomes(dev)[-1].wer
    costs = np.interp(compared_depths(test.layers), test.layers, [exit_.macs_per_second for exit_ in fixed])
    over_entropy, over_fixed = (
        [at_cost(learned, cost).wer - at_cost(other, cost).wer for cost in costs] for other in (entropy, fixed)
    )
    lost = []
    for family, curve in zip(families, curves, strict=True):
        chosen = [calibrate(family, Target("wer_loss", loss), final).policy for loss in LOSSES]
        lost.append([100 * (curve[family.policies.index(policy)].wer / fixed[-1].wer - 1) for policy in chosen])
    return over_entropy, over_fixed, lost


def line(name: str, values: np.ndarray) -> str:
    """Means over the repeats, and the mean of them with its standard error."""
    means = values.mean(axis=1)
    error = means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    return (
        f"{name:<22}" + "".join(f"{value:>+7.2f}" for value in values.mean(axis=0)) + f"   {means.mean():+.2f} +- {error:.2f}"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Prints the tables for every number of utterances."""
    arguments = parse_arguments(words)
    grid = read_grid(arguments.evidence, arguments.text)
    speakers = np.array([name.partition("-")[0] for name in grid.utterances])
    print(f"{arguments.evidence}: {len(speakers)} utterances of {len(set(speakers))} speakers, {arguments.repeats} repeats")
    for count in arguments.fit or (max(1, len(speakers) // 4), max(1, len(speakers) // 2)):
        random, found = np.random.default_rng(0), []
        for _ in range(arguments.repeats):
            mask = draw(speakers, count, random)
            if mask.all():
                raise UsageError(f"--fit {count}: leaves no speaker to measure on; give less")
            found.append(gains(grid.part(mask), grid.part(~mask)))
        over_entropy, over_fixed, lost = (np.array(part) for part in zip(*found, strict=True))
        print(
            f"\nfitted on {count}, compute of exit {'':<1}"
            + "".join(f"{depth:>7g}" for depth in compared_depths(grid.layers))
            + "   mean"
        )
        print(line("learned - entropy", over_entropy))
        print(line("learned - fixed", over_fixed))
        print(f"loss asked for %      {''.join(f'{loss:>7g}' for loss in LOSSES)}")
        for name, values in zip(NAMES, lost.mean(axis=0), strict=True):
            print(f"loss of {name:<14}" + "".join(f"{value:>7.1f}" for value in values))


if __name__ == "__main__":
    run(main)
