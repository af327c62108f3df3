"""Word and character errors, per utterance, by jiwer.

Words are what whitespace separates, as in ESPnet's scoring; characters include the space between words, as ESPnet's
``<space>`` does. The alignment is Levenshtein's (all edits cost 1); sclite weighs a substitution 4 and a gap 3, so
its split into S/D/I, and in rare sentences the sum, can differ by a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import jiwer

from espnet_ee.errors import UserError

Unit = Literal["word", "character"]


@dataclass(frozen=True)
class ErrorCounts:
    """Hits and errors of one utterance or, added up, of many.

    >>> ErrorCounts(1, 4, 3, 1, 0, 1, 1).rate
    50.0
    """

    sentences: int = 0
    tokens: int = 0
    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    wrong_sentences: int = 0

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Error rate in per cent of the reference's tokens; ``inf`` when there are errors but no reference token."""
        return _percent(self.errors, self.tokens)

    @property
    def sentence_rate(self) -> float:
        """Per cent of the sentences with at least one error."""
        return _percent(self.wrong_sentences, self.sentences)

    def percent(self, count: int) -> float:
        """Returns ``count`` in per cent of the reference's tokens."""
        return _percent(count, self.tokens)


def _percent(count: int, total: int) -> float:
    if total:
        return 100.0 * count / total
    return math.inf if count else 0.0


def add_counts(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Returns the sum of the counts."""
    columns = list(zip(*((c.sentences, c.tokens, c.hits, c.substitutions, c.deletions, c.insertions, c.wrong_sentences)
                         for c in counts), strict=True))  # fmt: skip
    return ErrorCounts(*map(sum, columns))


def check_same_utterances(references: Iterable[str], hypotheses: Iterable[str], where: str) -> None:
    """Checks that every reference has its hypothesis and the other way round: none is ever dropped silently.

    Args:
        references: utterance ids of the reference.
        hypotheses: utterance ids of the decoding.
        where: what was decoded, for the message.

    Raises:
        UserError: naming the first utterance that lacks its partner, and how many do.
    """
    have, decoded = set(references), set(hypotheses)
    missing, extra = sorted(have - decoded), sorted(decoded - have)
    if missing:
        raise UserError(
            f"{where}: no hypothesis for {missing[0]} ({len(missing)} of {len(have)} utterances); decode the whole set again"
        )
    if extra:
        raise UserError(
            f"{where}: hypothesis for {extra[0]} ({len(extra)} such), which the reference lacks; decode the set as it is now"
        )


def count_errors(references: Mapping[str, str], hypotheses: Mapping[str, str], unit: Unit) -> dict[str, ErrorCounts]:
    """Aligns each hypothesis with its reference.

    Args:
        references: text by utterance id; an empty one makes every hypothesis token an insertion.
        hypotheses: text by utterance id; an empty one makes every reference token a deletion.
        unit: what counts as a token.

    Returns:
        The counts by utterance id, in the references' order.

    Raises:
        UserError: the two do not hold the same utterances.
    """
    check_same_utterances(references, hypotheses, "scoring")
    texts = {utt: (" ".join(references[utt].split()), " ".join(hypotheses[utt].split())) for utt in references}
    # jiwer refuses an empty reference, so those are counted without it.
    aligned = {utt: pair for utt, pair in texts.items() if pair[0]}
    counts = dict(zip(aligned, _align(list(aligned.values()), unit), strict=True))
    for utt, (reference, hypothesis) in texts.items():
        if not reference:
            inserted = len(hypothesis.split() if unit == "word" else hypothesis)
            counts[utt] = ErrorCounts(sentences=1, insertions=inserted, wrong_sentences=int(inserted > 0))
    return {utt: counts[utt] for utt in texts}


def _align(pairs: list[tuple[str, str]], unit: Unit) -> list[ErrorCounts]:
    if not pairs:
        return []
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    output = process([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return [_count_chunks(chunks) for chunks in output.alignments]


def _count_chunks(chunks: list[jiwer.AlignmentChunk]) -> ErrorCounts:
    count = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
    for chunk in chunks:
        # Only an insertion has no extent in the reference.
        start, end = (
            (chunk.hyp_start_idx, chunk.hyp_end_idx) if chunk.type == "insert" else (chunk.ref_start_idx, chunk.ref_end_idx)
        )
        count[chunk.type] += end - start
    hits, subs, dels, ins = count.values()
    return ErrorCounts(1, hits + subs + dels, hits, subs, dels, ins, int(subs + dels + ins > 0))
