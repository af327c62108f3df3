"""When words are said, measured where it is known: which words are compared, and what follows of how late they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_ee.data.inputs import Input
from espnet_ee.decode.word_times import LEAST_WORDS, Lateness, facts_of, lateness, measure
from espnet_ee.errors import UserError
from espnet_ee.search.words import Word

Timed = tuple[str, float, float]


@given(st.lists(st.sampled_from(["said", "another", "missing", "one more"])))
def test_each_word_that_both_have_is_compared_with_itself(fates: list[str]) -> None:
    known = [(f"w{number}", float(number), number + 0.5) for number in range(len(fates))]
    found: list[Timed] = []
    for (word, start, end), fate in zip(known, fates, strict=True):
        found += [("x", 90.0, 99.0)] if fate in ("another", "one more") else []
        found += [(word, start + 0.25, end - 0.125)] if fate in ("said", "one more") else []
    both = fates.count("said") + fates.count("one more")
    assert list(lateness({"u": known, "v": known}, {"t": found, "u": found})) == [(0.25, -0.125)] * both


def timed(count: int, late: float = 0.0) -> list[Timed]:
    return [(f"w{number}", number + late, number + 0.5 + late) for number in range(count)]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    """Measures aligners that give words by exit layer and text; a text that is not among them cannot be aligned."""

    def run(said: Mapping[int, Mapping[str, list[Timed]]], texts: Mapping[str, str], known: Mapping[str, list[Timed]]) -> Any:
        class Aligner:
            def __init__(self, session: Any, layer: int) -> None:
                self.layer = layer

            def __call__(self, samples: np.ndarray, text: str) -> Sequence[Word]:
                if text not in said[self.layer]:
                    raise UserError("too short")
                return [Word(word, start, end, 1.0) for word, start, end in said[self.layer][text]]

        monkeypatch.setattr("espnet_ee.decode.word_times.Aligner", Aligner)
        inputs = [Input(name, 1.0, lambda: np.zeros(1, np.float32)) for name in ("a", "b", "c", "d")]
        return measure(SimpleNamespace(exit_layers=tuple(said)), inputs, texts, dict(known))  # type: ignore[arg-type]

    return run


def test_what_cannot_be_compared_is_passed_over_and_the_rest_counts(measured) -> None:
    texts = {"b": "last alone", "c": "first alone", "d": "yes"}  # of "a" nobody knows the text, of "e" there is no sound
    known = {name: timed(LEAST_WORDS) for name in "abcde"}
    said = {
        2: {"first alone": timed(1), "yes": timed(LEAST_WORDS, 0.5)},
        4: {"last alone": timed(1), "yes": timed(LEAST_WORDS)},
    }
    first, last = measured(said, texts, known)
    assert (first.layer, len(first.late), first.median) == (2, LEAST_WORDS + 1, (0.5, 0.5))
    assert (last.layer, len(last.late), last.median) == (4, LEAST_WORDS + 1, (0.0, 0.0))
    assert len(measured(said, texts, {**known, "b": timed(0)})[1].late) == LEAST_WORDS  # just enough
    said[4]["yes"].pop()
    with pytest.raises(UserError, match=f"{LEAST_WORDS - 1} words"):
        measured(said, texts, {"c": known["c"], "d": known["d"]})


@pytest.mark.parametrize(("late", "refused"), [(0.999, False), (1.0, True), (-1.0, True)])
def test_a_clock_that_is_not_the_utterances_is_refused_at_any_exit(measured, late: float, refused: bool) -> None:
    said = {2: {"yes": timed(LEAST_WORDS)}, 4: {"yes": timed(LEAST_WORDS, late)}}
    if refused:
        with pytest.raises(UserError, match="a second or more"):
            measured(said, {"d": "yes"}, {"d": timed(LEAST_WORDS)})
    else:
        assert measured(said, {"d": "yes"}, {"d": timed(LEAST_WORDS)})[1].median == (late, late)


def test_words_get_their_times_by_the_first_exit_only_where_it_is_better() -> None:
    steady, wild = np.full((4, 2), 0.25), np.array([[0.0, 0.5], [1.0, 0.5], [0.0, 0.5], [1.0, 0.5]])
    assert facts_of([Lateness(2, steady), Lateness(4, wild)])["word_exit"] == 2
    for measured in ([Lateness(2, steady), Lateness(4, steady)], [Lateness(2, wild), Lateness(4, steady)]):
        assert "word_exit" not in facts_of(measured)
    assert facts_of([Lateness(4, steady)]) == {
        "word_shift": [-0.25, -0.25],
        "exit_words_late_start_end_within_start_end": [[4, 4, 0.25, 0.25, 100.0, 100.0]],
    }
    assert Lateness(2, wild).within == (0.0, 100.0)
