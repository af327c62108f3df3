"""Hotwords: a text's score rises wherever it says one of them, already while the word is being spelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from espnet_ee.errors import UserError
from espnet_ee.search.align import Speller
from espnet_ee.search.scorer import Scorer
from espnet_ee.text import spelling


class HotwordScorer(Scorer):
    """Adds each hotword's boost as often as a text says it, between blanks or the text's ends; nothing else in the end.

    Letters are matched (Aho and Corasick's automaton), so it does not matter which tokens spell a word. On the way a text that spells
    the first m of a word's n letters has m/n of the boost, lest the beam lose it; where it goes on otherwise, that is taken back.
    Words of a vocabulary without blanks are found anywhere.

    Args:
        hotwords: words, or several with single blanks between them, and their boosts (natural logarithm).
        tokens: the vocabulary.
        blank: blank id.

    Raises:
        UserError: no tokens spell one of the words.
    """

    def __init__(self, hotwords: Mapping[str, float], tokens: Sequence[str], blank: int) -> None:
        speller = Speller(tokens, blank)
        for word in hotwords:
            try:
                speller(word)
            except UserError as error:
                raise UserError(f"search: the hotword {error}") from None
        self._letters = ["" if place == blank else spelling(token) for place, token in enumerate(tokens)]
        self._edge = " " if any(" " in letters for letters in self._letters) else ""
        self._following: list[dict[str, int]] = [{}]
        self._ends_word = [False]  # whether the last letter is a blank
        self._promised, self._paid = [0.0], [0.0]
        for word, boost in hotwords.items():
            self._add(word, boost)
        self._shorter = self._link()
        self._steps: dict[tuple[int, int], tuple[int, float]] = {}
        self._mosts: dict[int, float] = {}

    def start(self) -> int:
        """Before the first token: as after a blank."""
        return self._following[0][self._edge] if self._edge else 0

    def step(self, state: int, token: int) -> tuple[int, float]:
        known = self._steps.get((state, token))
        if known is None:
            known = self._steps[state, token] = self._spell(state, self._letters[token])
        return known

    def end(self, state: int) -> float:
        """What the end of the text adds: an unfinished word's share is taken back."""
        last, added = self._spell(state, self._edge)
        return added - self._promised[last]

    def most(self, state: int) -> float:
        known = self._mosts.get(state)
        if known is None:
            known = self._mosts[state] = max(self.step(state, token)[1] for token in range(len(self._letters)))
        return known

    def _spell(self, state: int, letters: str) -> tuple[int, float]:
        added = -self._promised[state]
        for letter in letters:
            if letter == self._edge and self._ends_word[state]:
                continue  # several blanks are one
            while state and letter not in self._following[state]:
                state = self._shorter[state]
            state = self._following[state].get(letter, 0)
            added += self._paid[state]
        return state, added + self._promised[state]

    def _add(self, word: str, boost: float) -> None:
        state = 0
        letters = f"{self._edge}{word}{self._edge}"
        for number, letter in enumerate(letters, 1):
            if letter not in self._following[state]:
                self._following[state][letter] = len(self._following)
                self._following.append({})
                self._ends_word.append(letter == self._edge)
                self._promised.append(0.0)
                self._paid.append(0.0)
            state = self._following[state][letter]
            if number < len(letters):
                share = boost * (number - len(self._edge)) / len(word)
                self._promised[state] = max(self._promised[state], share)
        self._paid[state] += boost

    def _link(self) -> list[int]:
        """For each state that of its longest proper end that is another word's beginning; what that one gives counts, too."""
        shorter = [0] * len(self._following)
        waiting = list(self._following[0].values())
        for state in waiting:  # grows: the states in the order of their lengths
            for letter, following in self._following[state].items():
                waiting.append(following)
                end = shorter[state]
                while end and letter not in self._following[end]:
                    end = shorter[end]
                end = self._following[end].get(letter, 0)
                shorter[following] = end
                self._paid[following] += self._paid[end]
                self._promised[following] = max(self._promised[following], self._promised[end])
        return shorter
