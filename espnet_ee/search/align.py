"""The best CTC alignment of a text, in NumPy: of known tokens, or of letters that tokens can spell in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.search.greedy import TokenSpan, spans_of_path
from espnet_ee.text import spelling

_NEVER = -np.inf


@dataclass(frozen=True)
class Graph:
    """What a path may go through: states, each of which may also stay.

    Attributes:
        labels: token or blank of each state (S,).
        before: the states from which each can be reached, itself first (S, P); filled up with S, which is never reached.
        first: the states a path may begin in.
        last: those it may end in.
    """

    labels: np.ndarray
    before: np.ndarray
    first: tuple[int, ...]
    last: tuple[int, ...]


def align(log_probs: np.ndarray, graph: Graph) -> np.ndarray | None:
    """The token or blank of each frame (T,) on the most probable path through (T, V); None where the frames are too few."""
    count, frames = len(graph.labels), len(log_probs)
    if not frames:
        return None
    best = np.full(count + 1, _NEVER)
    best[list(graph.first)] = log_probs[0, graph.labels[list(graph.first)]]
    ways = np.zeros((frames, count), np.int32)
    rows = np.arange(count)
    for frame in range(1, frames):
        reached = best[graph.before]
        way = reached.argmax(axis=1)
        best[:count] = reached[rows, way] + log_probs[frame, graph.labels]
        ways[frame] = graph.before[rows, way]
    state = max(graph.last, key=lambda place: best[place])
    if best[state] == _NEVER:
        return None
    path = np.empty(frames, np.int64)
    for frame in range(frames - 1, -1, -1):
        path[frame] = graph.labels[state]
        state = int(ways[frame, state])
    return path


def aligned(log_probs: np.ndarray, graph: Graph, blank: int) -> tuple[tuple[int, ...], tuple[TokenSpan, ...]] | None:
    """Tokens of the most probable path, and where each lies; None where the frames are too few. See :func:`align`."""
    path = align(log_probs, graph)
    return None if path is None else spans_of_path(path, log_probs[np.arange(len(path)), path], blank)


def chain(tokens: Sequence[int], blank: int) -> Graph:
    """The graph of one sequence of tokens: state 2u+1 is token u, those around it are blanks."""
    labels = [blank] * (2 * len(tokens) + 1)
    labels[1::2] = tokens
    before = [[place, *([place - 1] if place else [])] for place in range(len(labels))]
    for place in range(3, len(labels), 2):
        if labels[place] != labels[place - 2]:  # between equal tokens there is a blank
            before[place].append(place - 2)
    return graph_of(labels, before, (0, 1)[: len(labels)], tuple(range(max(0, len(labels) - 2), len(labels))))


def graph_of(labels: Sequence[int], before: Sequence[Sequence[int]], first: Sequence[int], last: Sequence[int]) -> Graph:
    """A graph of lists."""
    table = np.full((len(labels), max(map(len, before))), len(labels))
    for place, states in enumerate(before):
        table[place, : len(states)] = states
    return Graph(np.array(labels), table, tuple(first), tuple(last))


class Speller:
    """Makes the graph of a text of which only the letters are known, not which tokens spell it.

    With pieces a text has many spellings; the frames choose the most probable one. So no tokeniser is needed, which exported
    models do not have.

    Args:
        tokens: the vocabulary: characters with ``<space>``, or pieces with ``▁``.
        blank: blank id.
    """

    def __init__(self, tokens: Sequence[str], blank: int) -> None:
        spelled = {place: spelling(token) for place, token in enumerate(tokens) if place != blank}
        self._places = {letters: place for place, letters in spelled.items() if letters and not _is_special(tokens[place])}
        self._longest = max(map(len, self._places), default=0)
        self._blank, self._has_spaces = blank, any(" " in letters for letters in self._places)

    def __call__(self, text: str) -> Graph:
        """The graph of all spellings.

        Raises:
            UserError: no tokens spell the text; names the first letter that none holds.
        """
        letters = (" " if self._has_spaces else "").join(["", *text.split()])
        nodes = [
            (start, end, self._places[letters[start:end]])
            for start in range(len(letters))
            for end in range(start + 1, min(len(letters), start + self._longest) + 1)
            if letters[start:end] in self._places
        ]
        starts = {0, 1} if letters[:1] == " " else {0}  # characters have no blank before the first word, pieces have
        nodes = _complete(nodes, starts, len(letters))
        if not nodes and letters.strip():
            known = set("".join(self._places))
            strange = next((letter for letter in letters if letter not in known), None)
            reason = f"no token holds {strange!r}" if strange else "its letters are there, but not in this order"
            raise UserError(
                f"{text[:60]!r} cannot be spelled with the model's tokens: {reason}; write it as the training's texts"
            )
        return self._graph(nodes, starts, len(letters))

    def _graph(self, nodes: Sequence[tuple[int, int, int]], starts: set[int], length: int) -> Graph:
        """States: a blank at every place between letters, then the tokens."""
        blanks = length + 1
        labels = [self._blank] * blanks + [token for _, _, token in nodes]
        before: list[list[int]] = [[place] for place in range(blanks + len(nodes))]
        ending: dict[int, list[int]] = {}
        for number, (_, end, _) in enumerate(nodes):
            ending.setdefault(end, []).append(blanks + number)
        for number, (start, _, token) in enumerate(nodes):
            before[blanks + number] += [start, *(state for state in ending.get(start, ()) if labels[state] != token)]
        for place, states in ending.items():
            before[place] += states
        if not nodes:
            return graph_of(labels[:1], before[:1], (0,), (0,))
        first = [*starts, *(blanks + number for number, (start, _, _) in enumerate(nodes) if start in starts)]
        return graph_of(labels, before, first, [length, *ending[length]])


def _complete(nodes: Sequence[tuple[int, int, int]], starts: set[int], length: int) -> list[tuple[int, int, int]]:
    """Those that lie on a way from a start to the end of the text; sorted by where they start, as they are given."""
    reached = set(starts)
    for start, end, _ in nodes:
        if start in reached:
            reached.add(end)
    leading = {length}
    for start, end, _ in reversed(nodes):
        if end in leading:
            leading.add(start)
    return [node for node in nodes if node[0] in reached and node[1] in leading]


def _is_special(token: str) -> bool:
    return token.startswith("<") and token.endswith(">") and token != "<space>"
