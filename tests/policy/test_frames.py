"""The evidence of an exit, computed by hand from a small matrix; and that only what is read is made."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from espnet_ee.policy.evidence import OF_DECODER, ExitEvidence
from espnet_ee.policy.frames import FIELDS, FrameEvidence, Frames, evidence_of, read_of, spoken_tokens
from espnet_ee.search.greedy import greedy

# Seven frames, four tokens, blank 0: A A . A . . B of probabilities chosen so that no two statistics are equal.
PROBABILITIES = np.array(
    [
        [0.1, 0.6, 0.2, 0.1],
        [0.2, 0.7, 0.05, 0.05],
        [0.9, 0.04, 0.03, 0.03],
        [0.3, 0.4, 0.2, 0.1],
        [0.8, 0.1, 0.05, 0.05],
        [0.5, 0.2, 0.2, 0.1],
        [0.25, 0.05, 0.55, 0.15],
    ]
)


def frames_of(probabilities: np.ndarray) -> Frames:
    """Plain loops, in double."""
    labels = [max(range(len(row)), key=lambda token: row[token]) for row in probabilities]
    sure = [max(row) for row in probabilities]
    entropy = [-sum(p * math.log(p) for p in row) for row in probabilities]
    return Frames(np.array(labels, int), np.log(sure), np.array(entropy), probabilities.shape[1])


def test_every_field_by_hand() -> None:
    frames = replace(frames_of(PROBABILITIES), cluster_entropy=np.arange(7.0))
    evidence = evidence_of(4, frames, 0, FIELDS)
    assert evidence.layer == 4
    assert evidence.frames == 7
    assert evidence.tokens == (1, 1, 2)

    assert evidence.entropy == pytest.approx((1.0889 + 0.8713 + 0.4341 + 1.2799 + 0.7084 + 1.2206 + 1.1097) / (7 * 4), abs=2e-4)
    assert evidence.confidence == pytest.approx((0.6 + 0.7 + 0.9 + 0.4 + 0.8 + 0.5 + 0.55) / 7)
    assert evidence.blank_share == pytest.approx(3 / 7)
    assert evidence.score == pytest.approx(math.log(0.6 * 0.7 * 0.9 * 0.4 * 0.8 * 0.5 * 0.55))
    assert evidence.spoken_confidence == pytest.approx((0.6 + 0.7 + 0.4 + 0.55) / 4)
    assert evidence.token_confidence == pytest.approx(0.4)  # of 0.7 (two frames), 0.4 and 0.55
    assert evidence.cluster_entropy == 3.0
    assert evidence.nbest_scores == ()
    values = [value for field in fields(evidence) if isinstance(value := getattr(evidence, field.name), float)]
    assert math.isnan(values.pop())  # of a decoder, which there is none of
    assert len(set(values)) == len(values) == 7  # the fixture tells them apart


def test_another_blank_is_another_evidence() -> None:
    evidence = evidence_of(4, frames_of(PROBABILITIES), 1, FIELDS)
    assert evidence.tokens == (0, 0, 2)
    assert evidence.blank_share == pytest.approx(3 / 7)
    assert evidence.spoken_confidence == pytest.approx((0.9 + 0.8 + 0.5 + 0.55) / 4)
    assert evidence.token_confidence == pytest.approx(0.55)
    assert evidence_of(4, frames_of(PROBABILITIES[:6]), 0, FIELDS).blank_share == pytest.approx(3 / 6)
    assert evidence_of(4, frames_of(PROBABILITIES[:5]), 0, FIELDS).blank_share == pytest.approx(2 / 5)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_only_what_is_read_is_made(name: str) -> None:
    frames = frames_of(PROBABILITIES)
    whole = evidence_of(2, frames, 0, FIELDS)
    expected = ExitEvidence(2, frames=7, **{name: getattr(whole, name)})
    # By repr: NaN is equal to nothing, and from Python 3.13 on neither is what holds one.
    assert repr(evidence_of(2, frames, 0, {name})) == repr(expected)


def test_every_field_that_a_policy_could_read_is_made_of_frames_or_of_a_search() -> None:
    assert {field.name for field in fields(ExitEvidence)} == FIELDS | OF_DECODER | {"layer", "frames", "nbest_scores"}


def test_evidence_makes_what_is_looked_at_and_is_made_once() -> None:
    frames = frames_of(PROBABILITIES)
    evidence, whole = FrameEvidence(2, frames, 0), evidence_of(2, frames, 0, FIELDS)
    frames.labels = frames.log_confidence = np.zeros(0)  # looked at, either would be missed
    assert (evidence.layer, evidence.frames, evidence.entropy) == (2, 7, whole.entropy)
    frames = frames_of(PROBABILITIES)
    evidence = FrameEvidence(2, frames, 0)
    assert evidence.tokens == whole.tokens
    frames.labels = np.zeros(0, int)
    assert evidence.tokens == whole.tokens and evidence.token_confidence == whole.token_confidence
    assert read_of(whole, {"entropy"}) is whole


def test_nothing_is_known_of_no_frames_nor_of_words_in_silence() -> None:
    none = np.zeros(0)
    assert repr(evidence_of(2, Frames(none.astype(int), none, none, 4), 0, FIELDS)) == repr(ExitEvidence(2))
    silence = evidence_of(2, frames_of(PROBABILITIES[[2, 4]]), 0, FIELDS)
    assert silence.tokens == () and silence.blank_share == 1.0
    assert math.isnan(silence.spoken_confidence) and math.isnan(silence.token_confidence)


def test_tokens_of_a_path() -> None:
    path, sure = np.array([3, 3, 0, 3, 5, 5, 0]), np.array([0.5, 0.7, 0.1, 0.8, 0.9, 0.6, 0.2])
    assert spoken_tokens(path, sure, 0) == ((3, 3, 5), 0.7)
    assert spoken_tokens(path, sure, 5) == ((3, 0, 3, 0), 0.1)
    tokens, least = spoken_tokens(path[:0], sure[:0], 0)
    assert tokens == () and math.isnan(least)
    broken = np.where(path == 5, math.nan, sure)
    assert math.isnan(spoken_tokens(path, broken, 0)[1]) and spoken_tokens(path, broken, 5)[1] == 0.1
    once = np.array([math.nan, 0.5, 0.6, 0.1])
    assert math.isnan(spoken_tokens(np.array([3, 3, 0, 2]), once, 0)[1])  # a later frame's number does not hide it
    assert math.isnan(spoken_tokens(np.array([3, 3, 0, 2]), once[[1, 0, 2, 3]], 0)[1])
    hypothesis = greedy(frames_of(PROBABILITIES[:2]), 0)
    assert hypothesis.tokens == (1,) and hypothesis.score == pytest.approx(math.log(0.6 * 0.7))
