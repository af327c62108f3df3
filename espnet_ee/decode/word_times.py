"""When words are said, measured on a set where it is known: by which exit's alignment, and by how much all of them are late.

Nothing in a CTC training says in which of its frames a token is to be said. Models say it later than it is heard, always by about as
much; and deep layers, which see the whole utterance, may say the beginning of the first word in the first frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from espnet_ee.data.inputs import Input
from espnet_ee.data.word_times import TimedWords
from espnet_ee.decode.alignment import Aligner
from espnet_ee.decode.session import ExitSession
from espnet_ee.errors import UserError

TIMES, WORD_KEYS = "word_times.yaml", ("word_exit", "word_shift")
WITHIN = 0.08  # seconds
LEAST_WORDS = 25


@dataclass(frozen=True)
class Lateness:
    """How an exit's alignment of known texts meets known times.

    Attributes:
        layer: exit layer.
        late: by how much the words' starts and ends come later than they are (W, 2), in seconds.
    """

    layer: int
    late: np.ndarray

    @property
    def median(self) -> tuple[float, float]:
        """Of the starts and of the ends, to the millisecond."""
        start, end = np.median(self.late, axis=0).round(3).tolist()
        return start, end

    @property
    def within(self) -> tuple[float, float]:
        """Per cent of the starts and of the ends that lie within 80 ms, without the median."""
        start, end = (100 * np.mean(np.abs(self.late - self.median) <= WITHIN, axis=0)).round(1).tolist()
        return start, end


def lateness(known: TimedWords, found: TimedWords) -> Iterator[tuple[float, float]]:
    """Of each word that both have (the longest common part of their texts), how much later it starts and ends."""
    for name, words in found.items():
        texts = [[word for word, _, _ in one] for one in (known.get(name, []), words)]
        for block in SequenceMatcher(None, texts[0], texts[1], autojunk=False).get_matching_blocks():
            for number in range(block.size):
                true, said = known[name][block.a + number], words[block.b + number]
                yield said[1] - true[1], said[2] - true[2]


def measure(session: ExitSession[Any], inputs: Sequence[Input], texts: Mapping[str, str], known: TimedWords) -> list[Lateness]:
    """What the first and the last exit make of a set's texts; utterances that cannot be aligned are passed over.

    Raises:
        UserError: the model does not know how long its frames are, or too few words can be compared.
    """
    aligners = [Aligner(session, layer) for layer in dict.fromkeys((session.exit_layers[0], session.exit_layers[-1]))]
    found: list[TimedWords] = [{} for _ in aligners]
    for item in inputs:
        if item.utt_id not in known or item.utt_id not in texts:
            continue
        for aligner, words in zip(aligners, found, strict=True):
            try:
                timed = aligner(item.load(), texts[item.utt_id])
            except UserError:
                continue
            words[item.utt_id] = [(word.text, word.start, word.end) for word in timed]
    late = [np.array(list(lateness(known, words))) for words in found]
    fewest = min(map(len, late))
    if fewest < LEAST_WORDS:
        raise UserError(
            f"{fewest} words can be compared, fewer than {LEAST_WORDS}; check that its utterances are called as the set's"
        )
    measured = [Lateness(aligner.layer, table) for aligner, table in zip(aligners, late, strict=True)]
    if any(abs(seconds) >= 1 for one in measured for seconds in one.median):
        raise UserError(
            "most words are said a second or more from where it has them; are its times those from the utterances' starts?"
        )
    return measured


def facts_of(measured: Sequence[Lateness]) -> dict[str, Any]:
    """What a decoding configuration takes of it: ``word_exit``, where the first exit is better, and ``word_shift``; and the measures."""
    first, last = measured[0], measured[-1]
    best = first if sum(first.within) > sum(last.within) else last
    chosen = {} if best is last else {"word_exit": best.layer}
    table = [[one.layer, len(one.late), *one.median, *one.within] for one in measured]
    return {**chosen, "word_shift": [-late for late in best.median], "exit_words_late_start_end_within_start_end": table}
