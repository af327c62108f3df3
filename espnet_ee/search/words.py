"""Words with their times and confidences, made of an exit's own alignment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from espnet_ee.search.greedy import TokenSpan
from espnet_ee.text import spelling


@dataclass(frozen=True)
class Word:
    """A word of a recognition.

    Attributes:
        text: without blanks.
        start: of the first frame of its first token, in seconds from the start of the audio.
        end: of the last frame of its last token; not before ``start``.
        confidence: geometric mean over its tokens of the probability in the token's surest frame, in 0..1:
            ``exp(1/n sum_i max_t log p(token_i | frame t))``, t within the token's frames. The model's own, of which nothing
            says how often such words are right; recognition maps them, where its decoding configuration holds ``confidences``.
    """

    text: str
    start: float
    end: float
    confidence: float

    def later(self, seconds: float) -> Word:
        """The word on a clock that started so much earlier."""
        return replace(self, start=self.start + seconds, end=self.end + seconds)


def words_of(
    tokens: Sequence[str],
    spans: Sequence[TokenSpan],
    frame_seconds: float,
    seconds: float = math.inf,
    token_type: str = "char",
) -> tuple[Word, ...]:
    """The words that tokens spell; joined with blanks they are what :func:`espnet_ee.text.tokens_to_text` makes.

    Args:
        tokens: characters with ``<space>``, pieces with ``▁``, or words.
        spans: of each, in order.
        frame_seconds: length of a frame.
        seconds: of the audio, within which all words lie: the last frame may reach beyond.
        token_type: what the tokens are; see :func:`espnet_ee.text.tokens_to_text`.

    >>> words_of(["▁HEL", "LO", "▁YOU"], [TokenSpan(1, 2, -0.1), TokenSpan(3, 4, -0.3), TokenSpan(6, 9, 0.0)], 0.5, 4.0)
    (Word(text='HELLO', start=0.5, end=2.0, confidence=0.8187307530779818), Word(text='YOU', start=3.0, end=4.0, confidence=1.0))
    """
    return tuple(_word(parts, frame_seconds, seconds) for parts in _grouped(tokens, spans, token_type))


def shifted(words: Sequence[Word], shift: tuple[float, float], seconds: float) -> tuple[Word, ...]:
    """Words that start and end so much later, still inside the audio, in order and without overlap.

    Args:
        words: in order.
        shift: of starts and of ends, in seconds.
        seconds: of the audio.

    >>> shifted([Word("A", 0.25, 0.5, 1.0), Word("B", 1.0, 1.5, 1.0)], (-0.5, 0.25), 1.625)
    (Word(text='A', start=0.0, end=0.5, confidence=1.0), Word(text='B', start=0.5, end=1.625, confidence=1.0))
    """
    if not words or not any(shift):
        return tuple(words)
    starts = [min(max(word.start + shift[0], 0.0), seconds) for word in words]
    moved, end = [], 0.0
    for word, start, limit in zip(words, starts, [*starts[1:], seconds], strict=True):
        start = max(start, end)
        end = min(max(word.end + shift[1], start), max(limit, start))
        moved.append(replace(word, start=start, end=end))
    return tuple(moved)


@dataclass(frozen=True)
class _Part:
    """What a token gives one word: letters, and the frames it takes for them."""

    letters: str
    start: float
    end: float
    log_probability: float


def _grouped(tokens: Sequence[str], spans: Sequence[TokenSpan], token_type: str) -> Iterator[list[_Part]]:
    """What each word is made of. A token may hold a blank anywhere, and several; its frames are shared out evenly then."""
    word: list[_Part] = []
    for token, span in zip(tokens, spans, strict=True):
        spelled = spelling(token, token_type)
        if word and spelled[:1].isspace():
            yield word
            word = []
        parts = spelled.split()
        share = (span.end - span.start) / max(1, len(parts))
        for number, letters in enumerate(parts):
            if number:
                yield word
                word = []
            start = span.start + number * share
            word.append(_Part(letters, start, min(span.end, start + share), span.log_probability))
        if word and spelled[-1:].isspace():
            yield word
            word = []
    if word:
        yield word


def _word(parts: Sequence[_Part], frame_seconds: float, seconds: float) -> Word:
    start, end = (min(frames * frame_seconds, seconds) for frames in (parts[0].start, parts[-1].end))
    sure = math.fsum(part.log_probability for part in parts) / len(parts)
    return Word("".join(part.letters for part in parts), start, end, min(1.0, math.exp(sure)))
