#!/usr/bin/env python3
"""What the learned policy gains over one entropy threshold, and how many development utterances that takes.

    python tools/bench_policy.py --evidence exp/.../decode_every_exit/dev/evidence.tsv --text dump/raw/dev/text [--fit 80 160]
    python tools/bench_policy.py --generated 8000 --fit 100 300 1000 3000

Of utterances that the model was not trained on, some speakers are drawn, the policies calibrated on them as in stage 12, and
measured on the others, again and again. First table: error rate of `learned` less that of `entropy` and less that of drawing
between fixed exits, at the same compute, in points of per cent. Second: what was lost on the others, relative to the final
exit, when a loss was asked for (1@90: with 90 % confidence), in how many per cent of the drawings it was more than that (on few
others by their own chance, too), and the mean exit layer. A speaker is what stands before the first hyphen of an utterance's id. --generated makes utterances by chance: a
recogniser whose exits err less and less, on words and utterances of unlike difficulty, and are more or less sure of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from espnet_ee.errors import UsageError, run
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.table import EvidenceRow, EvidenceTable, Utterance
from espnet_ee.score.calibrate import Family, calibrate, judged_apart, make_families, parse_target
from espnet_ee.score.fit import DEFAULT_FEATURES
from espnet_ee.score.grid import Grid, exits_of, fixed_outcomes, make_grid, policy_outcome, read_grid, sweep
from espnet_ee.score.outcome import at_cost

NAMES = ("entropy", "learned")
LOSSES = ("1", "1@90", "5", "10")
Gains = tuple[list[float], list[float], list[list[tuple[float, float, float]]]]
"""Over entropy and over fixed by depth; by policy and target what was lost, whether it was too much, and the depth."""
_LAYERS = (2, 4, 6, 8, 10, 12)
_SKILL = (1.2, 2.2, 2.8, 3.1, 3.25, 3.3)  # log odds of a right word, in the mean
_SURE = (0.6, 0.8, 1.0, 1.15, 1.3, 1.4)  # of its odds, what an exit says of them


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--evidence", type=Path, help="evidence table with every exit")
    source.add_argument("--generated", type=int, metavar="N", help="so many utterances made by chance")
    parser.add_argument("--text", type=Path, help="its references; none for a table of the import format")
    parser.add_argument(
        "--fit", type=int, nargs="+", help="utterances to calibrate on, at least (default: a quarter and a half of the table's)"
    )
    parser.add_argument("--repeats", type=int, default=30, help="drawings of speakers")
    return parser.parse_args(words)


def generated(count: int, seed: int = 0) -> Grid:
    """Utterances made by chance: the evidence of an exit follows from the odds of its words, and so do its errors."""
    random, utterances, references = np.random.default_rng(seed), {}, {}
    for number in range(count):
        words = int(random.integers(3, 25))
        truth = [f"W{i}" for i in random.integers(0, 500, words)]
        hard, noise, rows = random.normal(0, 1) + random.normal(0, 1, words), np.zeros(words), []
        for layer, skill, sure in zip(_LAYERS, _SKILL, _SURE, strict=True):
            noise = 0.7 * noise + random.normal(0, 0.7, words)  # an exit differs from the one below, in part
            odds = skill - hard + noise
            right = odds + random.logistic(0, 0.5, words) > 0
            said = [word if good else f"X{int(-3 * odd)}" for word, good, odd in zip(truth, right, odds, strict=True)]
            rows.append(
                EvidenceRow(_evidence(layer, said, sure * np.abs(odds), random), " ".join(said), 10**6 * layer, 2 * 10**4)
            )
        utterances[f"u{number:05d}"] = Utterance(1.0, tuple(rows))
        references[f"u{number:05d}"] = " ".join(truth)
    return make_grid("generated", EvidenceTable(_LAYERS, utterances), references)


def _evidence(layer: int, said: Sequence[str], odds: np.ndarray, random: np.random.Generator) -> ExitEvidence:
    sure = 1 / (1 + np.exp(-np.minimum(odds, 9)))
    entropy = -(sure * np.log(sure) + (1 - sure) * np.log(1 - sure)).mean() / 100 + random.uniform(0, 2e-4)
    tokens = tuple(1000 * (word[0] == "X") + int(word[1:]) for word in said)
    means = (float(entropy), float(0.5 + sure.mean() / 2), 0.5, float(np.log(sure).sum()))
    return ExitEvidence(layer, tokens, *means, 12 * len(said), (), float(sure.mean()), float(sure.min()))


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
    apart = judged_apart(families, dev, DEFAULT_FEATURES)
    entropy, learned = [
        sweep(test, family.policies[0], [policy.threshold for policy in family.policies]) for family in families
    ]
    fixed = fixed_outcomes(test)
    costs = np.interp(compared_depths(test.layers), test.layers, [exit_.macs_per_second for exit_ in fixed])
    over_entropy, over_fixed = (
        [at_cost(learned, cost).wer - at_cost(other, cost).wer for cost in costs] for other in (entropy, fixed)
    )
    kept = [
        [_kept(test, family, sure, asked, fixed[-1].wer) for asked in LOSSES]
        for family, sure in zip(families, apart, strict=True)
    ]
    return over_entropy, over_fixed, kept


def _kept(test: Grid, family: Family, sure: Family, asked: str, final: float) -> tuple[float, float, float]:
    """What a calibrated policy loses, in per cent, whether that is more than was asked for, and its depth."""
    target = parse_target(f"wer_loss={asked}")
    policy = calibrate(sure if target.confidence else family, target).policy
    reached = policy_outcome(test, exits_of(test, policy), policy)
    loss = 100 * (reached.wer / final - 1)
    return loss, float(loss > target.value), reached.depth


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
    grid = generated(arguments.generated) if arguments.generated else read_grid(arguments.evidence, arguments.text)
    speakers = np.array([name.partition("-")[0] for name in grid.utterances])
    print(
        f"{arguments.evidence or grid.name}: {len(speakers)} utterances of {len(set(speakers))} speakers, {arguments.repeats} repeats"
    )
    for count in arguments.fit or (max(1, len(speakers) // 4), max(1, len(speakers) // 2)):
        random, found = np.random.default_rng(0), []
        for _ in range(arguments.repeats):
            mask = draw(speakers, count, random)
            if mask.all():
                raise UsageError(f"--fit {count}: leaves no speaker to measure on; give less")
            found.append(gains(grid.part(mask), grid.part(~mask)))
        over_entropy, over_fixed, kept = (np.array(part) for part in zip(*found, strict=True))
        print(
            f"\nfitted on {count}, compute of exit {'':<1}"
            + "".join(f"{depth:>7g}" for depth in compared_depths(grid.layers))
            + "   mean"
        )
        print(line("learned - entropy", over_entropy))
        print(line("learned - fixed", over_fixed))
        print(f"loss asked for %      {''.join(f'{loss:>7}' for loss in LOSSES)}")
        for name, values in zip(NAMES, kept.mean(axis=0), strict=True):
            for said, column, scale in (("loss of", 0, 1), ("more, % of", 1, 100), ("depth of", 2, 1)):
                print(f"{said} {name}".ljust(22) + "".join(f"{scale * value:>7.1f}" for value in values[:, column]))


if __name__ == "__main__":
    run(main)
