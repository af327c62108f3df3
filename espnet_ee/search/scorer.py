"""What a beam adds to the scores of its texts, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Scorer(Protocol):
    """Adds natural logarithms to a text's score; states are the scorer's own."""

    def start(self) -> Any:
        """The state before the first token."""

    def step(self, state: Any, token: int) -> tuple[Any, float]:
        """The state after a token, and what it adds."""

    def end(self, state: Any) -> float:
        """What the end of the text adds."""

    def most(self, state: Any) -> float:
        """No token adds more in this state."""


class ScorerSum(Scorer):
    """Several scorers as one."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self._scorers = scorers

    def start(self) -> tuple[Any, ...]:
        return tuple(scorer.start() for scorer in self._scorers)

    def step(self, state: tuple[Any, ...], token: int) -> tuple[tuple[Any, ...], float]:
        steps = [scorer.step(own, token) for scorer, own in zip(self._scorers, state, strict=True)]
        return tuple(following for following, _ in steps), sum(added for _, added in steps)

    def end(self, state: tuple[Any, ...]) -> float:
        return sum(scorer.end(own) for scorer, own in zip(self._scorers, state, strict=True))

    def most(self, state: tuple[Any, ...]) -> float:
        return sum(scorer.most(own) for scorer, own in zip(self._scorers, state, strict=True))
