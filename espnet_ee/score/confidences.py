"""Whether word confidences mean what they say, and the map that makes them: isotonic regression on a development set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espnet_ee.policy.confidences import ConfidenceMap, Knots
from espnet_ee.score.grid import Grid
from espnet_ee.score.wer import right_words

MOST_KNOTS = 12
LEAST_WORDS = 25  # of a knot
BINS = 10  # of the expected calibration error


@dataclass(frozen=True)
class Reliability:
    """What the word confidences of one exit on one set are worth.

    Attributes:
        layer: exit layer.
        words: how many were said.
        right: share of them that the alignment takes for the reference's.
        said: mean confidence.
        error: expected calibration error of the model's own confidences.
        mapped: that of the mapped ones; None without a map.
    """

    layer: int
    words: int
    right: float
    said: float
    error: float
    mapped: float | None


def judged_words(grid: Grid) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Confidence and rightness of all words that an exit said, by exit layer: (W,) in 0..1 and (W,) 0 or 1.

    Nothing where the evidence holds no word confidences, or of an utterance whose words fall apart when they are scored.
    """
    judged = {}
    for index, layer in enumerate(grid.layers.tolist()):
        rows = [(utt, grid.table.utterances[utt].rows[index]) for utt in grid.utterances]
        known = [(grid.references[utt], row) for utt, row in rows if row.confidences and utt in grid.references]
        right = right_words([(reference, row.hypothesis) for reference, row in known])
        pairs = [(row.confidences, one) for (_, row), one in zip(known, right, strict=True) if one is not None]
        if pairs:
            judged[layer] = (np.concatenate([said for said, _ in pairs]), np.concatenate([one for _, one in pairs]) * 1.0)
    return judged


def fit_confidences(grid: Grid) -> ConfidenceMap:
    """The map of every exit that said enough words; one without knots where the evidence holds no word confidences."""
    judged = judged_words(grid)
    return ConfidenceMap({layer: fit_knots(*words) for layer, words in judged.items() if len(words[0]) >= 2 * LEAST_WORDS})


def fit_knots(said: np.ndarray, right: np.ndarray) -> Knots:
    """Isotonic regression of what is right on what was said, of groups of words of like confidence.

    Groups, for of few words isotonic regression alone makes steps of chance; half a right and half a wrong word more in each, for
    nothing is ever certain. ``said`` are confidences (W,), ``right`` is 0 or 1 (W,).
    """
    from scipy.optimize import isotonic_regression  # half a second to import, and rarely needed

    order = np.argsort(said, kind="stable")
    groups = np.array_split(order, max(1, min(MOST_KNOTS, len(said) // LEAST_WORDS)))
    places = np.array([said[group].mean() for group in groups]).round(4)
    at, member = np.unique(places, return_inverse=True)
    size = np.bincount(member, [len(group) for group in groups])
    share = (np.bincount(member, [right[group].sum() for group in groups]) + 0.5) / (size + 1)
    smooth = isotonic_regression(share, weights=size).x.round(4)
    # On a level only its ends count.
    corners = np.array([True, *((smooth[1:-1] != smooth[:-2]) | (smooth[1:-1] != smooth[2:])), True])[: len(at)]
    return tuple(zip(at[corners].tolist(), smooth[corners].tolist(), strict=True))


def expected_calibration_error(said: np.ndarray, right: np.ndarray) -> float:
    """Mean distance between what was said (W,), in 0..1, and what was right (W,), over bins of equal width, by the words in each.

    >>> round(expected_calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([1, 1, 1, 0])), 2)
    0.15
    """
    place = np.minimum((said * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(place, right - said, BINS)).sum() / max(1, len(said)))


def reliabilities(grid: Grid, confidences: ConfidenceMap) -> list[Reliability]:
    """What the word confidences of each exit are worth on a set, before and after the map."""
    found = []
    for layer, (said, right) in judged_words(grid).items():
        mapped = np.array([confidences(layer, value) for value in said.tolist()])
        after = expected_calibration_error(mapped, right) if layer in confidences.knots else None
        counts = (len(said), float(right.mean()), float(said.mean()))
        found.append(Reliability(layer, *counts, expected_calibration_error(said, right), after))
    return found
