"""Fits the learned policy on a development set: a Poisson regression, and what deeper exits save.

Two things are estimated apart, because a development set of a hundred utterances cannot bear more: the errors per frame that
an exit makes, from its evidence (counts, so their logarithm is linear: one slope per feature for all exits, an intercept for
each), and the share of an exit's errors that a later one saves per layer, from the totals of the exits alone. Both are drawn
towards what asks less of so few utterances: the first towards the rule of the first feature alone, the second towards equal
shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from espnet_ee.errors import UsageError, UserError
from espnet_ee.policy.features import FEATURES
from espnet_ee.policy.learned import MOST, LearnedPolicy
from espnet_ee.score.grid import Grid

# Chosen without a test set, by tools/bench_policy.py.
DEFAULT_FEATURES = ("log_entropy", "least_token_doubt", "changed_tokens", "agreeing_exits")
FOLDS = 8
_RIDGE = 3.0  # anything from 0.1 to 10 gives the same curves
_PRIOR = 100.0  # errors that the first feature alone is worth: of so many it has half the say
_RESAMPLES = 100
_NEWTON_STEPS = 50


@dataclass(frozen=True)
class Samples:
    """What is fitted on: utterances (N), exits below the last (K - 1), features (F).

    Attributes:
        layers: exit layers (K,).
        features: (N, K - 1, F).
        errors: word errors of every exit (N, K).
        frames: (N,).
    """

    layers: np.ndarray
    features: np.ndarray
    errors: np.ndarray
    frames: np.ndarray

    def rows(self, selection: np.ndarray) -> Samples:
        """The samples of some utterances."""
        return Samples(self.layers, self.features[selection], self.errors[selection], self.frames[selection])


def make_samples(dev: Grid, names: Sequence[str]) -> Samples:
    """Computes the features (keys of :data:`espnet_ee.policy.features.FEATURES`) of all utterances of a development set.

    Raises:
        UsageError: a feature is unknown or named twice, or none is.
        UserError: the table lacks a feature's evidence, or there is too little to fit on.
    """
    for name in names:
        if name not in FEATURES:
            raise UsageError(f"feature {name!r} is unknown; known are {', '.join(FEATURES)}")
    if len(set(names)) != len(names) or not names:
        raise UsageError(f"features {' '.join(names) or 'none'}: name at least one, each once")
    evidence, below = [dev.table.utterances[utt].evidence for utt in dev.utterances], len(dev.layers) - 1
    if len(evidence) < 2 or not below:
        raise UserError(
            f"{len(evidence)} utterances with {len(dev.layers)} exits: too few to fit the learned policy on; take a larger development "
            "set, or leave learned out (--policies entropy confidence patience; of a recipe --calibrate_policies and --online_policies)"
        )
    values = [[[FEATURES[name](exits[: index + 1]) for name in names] for index in range(below)] for exits in evidence]
    features = np.array(values, dtype=float).reshape(len(evidence), below, len(names))
    for number, name in enumerate(names):
        if not np.isfinite(features[:, :, number]).any():
            remedy = "decode again, leave learned out, or choose other --features"
            raise UserError(f"feature {name}: the table lacks its evidence; {remedy}")
    return Samples(dev.layers, features, dev.errors, np.array([max(1, exits[0].frames) for exits in evidence]))


def _solve(samples: Samples, at_exit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (F,), the same for all exits, and an intercept for each group of exits (G,), of the logarithm of errors per frame.

    Newton's method on the Poisson likelihood of the errors (McCullagh and Nelder, Generalized Linear Models, ch. 6), the
    frames being the exposure; the ridge pulls slopes of standardised features to 0, and an exit without an error faintly to
    the rate of all exits.

    Args:
        samples: what to fit on.
        at_exit: which exits share an intercept (K - 1, G), one 1 in each row.
    """
    exits, groups = at_exit.shape
    x = samples.features.reshape(-1, samples.features.shape[-1])
    known = np.isfinite(x).all(axis=1)
    if not known.any():
        raise UserError("too few utterances have all of the features to fit the learned policy on; choose other features")
    x, errors, frames = x[known], samples.errors[:, :-1].ravel()[known], np.repeat(samples.frames, exits)[known]
    center, scale = x.mean(axis=0), x.std(axis=0) + 1e-12
    design = np.concatenate([(x - center) / scale, np.tile(at_exit, (len(samples.frames), 1))[known]], axis=1)
    penalty = np.array([_RIDGE] * x.shape[1] + [1e-3] * groups)
    start = np.array([0.0] * x.shape[1] + [np.log((errors.sum() + 0.5) / frames.sum())] * groups)
    solution = start.copy()
    for _ in range(_NEWTON_STEPS):
        expected = frames * np.exp(np.minimum(design @ solution, 0.0))  # more than an error per frame is none to believe
        slope = design.T @ (errors - expected) - penalty * (solution - start)
        step = np.linalg.solve(design.T @ (design * expected[:, None]) + np.diag(penalty), slope)
        solution += np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-6:
            break
    slopes = solution[: x.shape[1]] / scale
    return slopes, solution[x.shape[1] :] - center @ slopes


def _expected_errors(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (F,) and intercepts (K - 1,) of two models: all features, and the first alone at whatever exit.

    The more errors were seen, the less the second has to say; with few it keeps the first from following chance.
    """
    exits = len(samples.layers) - 1
    slopes, intercepts = _solve(samples, np.eye(exits))
    [alone], [intercept] = _solve(replace(samples, features=samples.features[:, :, :1]), np.ones((exits, 1)))
    share = _PRIOR / (_PRIOR + samples.errors[:, :-1].sum())
    slopes, intercepts = (1 - share) * slopes, (1 - share) * intercepts + share * intercept
    slopes[0] += share * alone
    return slopes, intercepts


def returns(layers: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Share of an exit's errors that the next layer saves, 0 where no later exit is better.

    Read off the lower convex hull of the errors over the layers, which is what mixing exits can reach: of a hundred
    utterances an exit may by chance look worse than the exits around it, and its own slopes would say little.

    Takes exit layers (K,) and the errors of each, added up (K,); gives (K - 1,).

    >>> returns(np.array([2, 4, 6]), np.array([10.0, 9.0, 2.0])).round(3).tolist()  # straight from the first to the third
    [0.2, 0.333]
    """
    corners: list[tuple[float, float]] = []
    for layer, least in zip(layers, np.minimum.accumulate(errors), strict=True):
        while len(corners) > 1 and _above(corners[-2], corners[-1], (layer, least)):
            corners.pop()
        corners.append((layer, least))
    hull = np.interp(layers, *np.transpose(corners))
    return (hull[:-1] - hull[1:]) / np.diff(layers) / np.maximum(1.0, hull[:-1])


def likely_returns(layers: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The mean of :func:`returns` over resampled utterances, drawn halfway (of logarithms) to the mean of all exits.

    A hundred utterances may say by chance that an exit is the best of all; what most of the resamples say of it remains.
    It is 0 only where none of them has a later exit that is better. Errors are of every utterance and exit (N, K).
    """
    count = len(errors)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) @ errors
    shares = np.mean([returns(layers, totals) for totals in drawn], axis=0)
    return np.sqrt(shares * shares.mean())


def _above(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    return (middle[1] - left[1]) * (right[0] - left[0]) >= (right[1] - left[1]) * (middle[0] - left[0])


def _levels(samples: Samples, fitted: Samples) -> np.ndarray:
    """Levels of some utterances by a model of others."""
    slopes, intercepts = _expected_errors(fitted)
    expected = np.exp(np.minimum(samples.features @ slopes + intercepts, MOST))
    return expected * likely_returns(fitted.layers, fitted.errors)


def folds(utterances: int) -> np.ndarray:
    """Number of the fold of every utterance (N,); neighbours, who may share a speaker, stay together."""
    return np.arange(utterances) * min(FOLDS, utterances) // utterances


def cross_fitted_levels(samples: Samples) -> np.ndarray:
    """Levels (N, K - 1) of every utterance by a model fitted without its fold: for an honest point on the development set."""
    fold = folds(len(samples.frames))
    level = np.full(samples.features.shape[:2], np.nan)
    for number in np.unique(fold):
        level[fold == number] = _levels(samples.rows(fold == number), samples.rows(fold != number))
    return level


def fit_learned(samples: Samples, names: Sequence[str]) -> LearnedPolicy:
    """Fits the policy on features of these names; its threshold is still to be calibrated."""
    slopes, intercepts = _expected_errors(samples)
    below = [int(layer) for layer in samples.layers[:-1]]
    shares = likely_returns(samples.layers, samples.errors)
    return LearnedPolicy(
        threshold=0.0,
        weights={name: float(value) for name, value in zip(names, slopes, strict=True)},
        intercepts={layer: float(value) for layer, value in zip(below, intercepts, strict=True)},
        returns={layer: float(value) for layer, value in zip(below, shares, strict=True)},
    )
