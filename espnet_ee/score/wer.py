"""Word and character errors, per utterance, by jiwer: the one place where texts are aligned.

Words are what whitespace separates, as in ESPnet's scoring; characters include the space between words, as ESPnet's
``<space>`` does. The alignment is Levenshtein's (all edits cost 1); sclite weighs a substitution 4 and a gap 3, so
its split into S/D/I, and in rare sentences the sum, can differ by a word.

Both sides are compared in Unicode's form NFKC. What a BPE model says is in that form, for sentencepiece puts every text it
learns from into it; NFC would keep ligatures, full-width letters and superscripts apart in the references, which no such model
can ever say and no ear tells apart. Of invisible characters the ones that sentencepiece reads as blanks are blanks here, too,
and the others are left out.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.text import INVISIBLE, READ_AS_BLANK

if TYPE_CHECKING:
    import jiwer

Unit = Literal["word", "character"]
_BLANKS = str.maketrans(dict.fromkeys(READ_AS_BLANK + "\u2581", " "))


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
        return self.percent(self.errors)

    @property
    def sentence_rate(self) -> float:
        """Per cent of the sentences with at least one error."""
        return 100.0 * self.wrong_sentences / max(1, self.sentences)

    def percent(self, count: int) -> float:
        """Returns ``count`` in per cent of the reference's tokens."""
        if self.tokens:
            return 100.0 * count / self.tokens
        return math.inf if count else 0.0


def add_counts(edits: np.ndarray) -> ErrorCounts:
    """The sum over utterances of hits, substitutions, deletions and insertions (N, 4)."""
    wrong = int((edits[:, 1:].sum(axis=1) > 0).sum())
    hits, substitutions, deletions, insertions = (int(total) for total in edits.sum(axis=0))
    return ErrorCounts(len(edits), hits + substitutions + deletions, hits, substitutions, deletions, insertions, wrong)


def check_same_utterances(references: Iterable[str], hypotheses: Iterable[str], where: str) -> None:
    """Checks, by utterance ids, that every reference has its hypothesis and the other way round: none is ever dropped silently.

    Raises:
        UserError: naming what was decoded (``where``), the first utterance that lacks its partner, and how many do.
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


def normal_form(text: str) -> str:
    """The text as it is compared: NFKC, no invisible character, words apart by one blank.

    >>> normal_form("\\ufb01n e\\u0301te\\u0301\\u200b ok ")
    'fin été ok'
    """
    if not _is_plain(text):
        shown = (sign for sign in text.translate(_BLANKS) if sign.isspace() or unicodedata.category(sign) not in INVISIBLE)
        text = unicodedata.normalize("NFKC", "".join(shown))
    return " ".join(text.split())


def invisible_characters(texts: Iterable[str]) -> int:
    """How many characters :func:`normal_form` leaves out or reads as blanks although nobody sees them."""
    signs = (sign for text in texts if not _is_plain(text) for sign in text)
    return sum(not sign.isspace() and unicodedata.category(sign) in INVISIBLE for sign in signs)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def count_edits(pairs: Sequence[tuple[str, str]], unit: Unit) -> np.ndarray:
    """Aligns texts; equal pairs are aligned once.

    Args:
        pairs: reference and hypothesis; an empty reference makes every hypothesis token an insertion.
        unit: what counts as a token.

    Returns:
        Hits, substitutions, deletions and insertions of each pair (N, 4).
    """
    normal = [(normal_form(reference), normal_form(hypothesis)) for reference, hypothesis in pairs]
    # jiwer refuses an empty reference, so those are counted without it.
    aligned = list({pair: None for pair in normal if pair[0]})
    known = dict(zip(aligned, _align(aligned, unit), strict=True))
    inserted = {pair: (0, 0, 0, len(pair[1].split() if unit == "word" else pair[1])) for pair in normal if not pair[0]}
    return np.array([known.get(pair) or inserted[pair] for pair in normal], dtype=int).reshape(-1, 4)


def right_words(pairs: Sequence[tuple[str, str]]) -> list[np.ndarray | None]:
    """Which words of each hypothesis the alignment takes for words of its reference.

    Args:
        pairs: reference and hypothesis.

    Returns:
        For each pair (words of the hypothesis,) of truth values; None where it has other words in normal form, by which are scored.
    """
    normal = [(normal_form(reference), normal_form(hypothesis)) for reference, hypothesis in pairs]
    right: list[np.ndarray | None] = [np.zeros(len(hypothesis.split()), dtype=bool) for _, hypothesis in normal]
    places = [place for place, (reference, hypothesis) in enumerate(normal) if reference and hypothesis]
    if places:
        import jiwer  # as below

        output = jiwer.process_words([normal[place][0] for place in places], [normal[place][1] for place in places])
        for place, chunks in zip(places, output.alignments, strict=True):
            own = np.zeros(len(normal[place][1].split()), dtype=bool)
            for chunk in chunks:
                own[chunk.hyp_start_idx : chunk.hyp_end_idx] = chunk.type == "equal"
            right[place] = own
    whole = [len(one[1].split()) == len(pair[1].split()) for one, pair in zip(normal, pairs, strict=True)]
    return [one if same else None for one, same in zip(right, whole, strict=True)]


def _align(pairs: Sequence[tuple[str, str]], unit: Unit) -> list[tuple[int, int, int, int]]:
    if not pairs:
        return []
    import jiwer  # here: what was aligned before is read without it

    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    output = process([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return [_count_chunks(chunks) for chunks in output.alignments]


def _count_chunks(chunks: Sequence[jiwer.AlignmentChunk]) -> tuple[int, int, int, int]:
    count = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
    for chunk in chunks:
        # Only an insertion has no extent in the reference, only a deletion none in the hypothesis.
        count[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    return count["equal"], count["substitute"], count["delete"], count["insert"]
