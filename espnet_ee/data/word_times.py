"""``words.ctm`` of a data directory: when each word of its utterances is said, where that is known.

In NIST's CTM format, a line a word: utterance, channel, start and duration in seconds from the utterance's start, word. Synthetic speech
knows it; for other speech an aligner's word (the Montreal Forced Aligner's, say) can be taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.files import read_lines

WORD_TIMES = "words.ctm"
_LONGEST = 1e6  # seconds

TimedWords = dict[str, list[tuple[str, float, float]]]
"""By utterance, its words with start and end in seconds."""


def read_word_times(path: str | Path) -> TimedWords:
    """Reads a CTM file; further columns, and comments (``;;``), are passed over.

    Raises:
        UserError: it is missing, or a line is something else.
    """
    words: TimedWords = {}
    for number, line in enumerate(read_lines(path), 1):
        if line.startswith(";;"):
            continue
        columns = line.split()
        try:
            name, start, lasts, word = columns[0], float(columns[2]), float(columns[3]), columns[4]
            if not (0 <= start <= _LONGEST and 0 <= lasts <= _LONGEST):
                raise ValueError
        except (IndexError, ValueError):
            raise UserError(
                f"{path}:{number}: is not 'utterance channel start duration word', times in seconds; mend the line"
            ) from None
        words.setdefault(name, []).append((word, start, start + lasts))
    return words


def word_times_text(words: Mapping[str, Sequence[tuple[str, float, float]]]) -> str:
    """The lines that :func:`read_word_times` reads, to the millisecond."""
    timed = ((name, *word) for name, said in words.items() for word in said)
    return "".join(f"{name} 1 {start:.3f} {end - start:.3f} {word}\n" for name, word, start, end in timed)
