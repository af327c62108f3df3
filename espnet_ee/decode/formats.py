"""Transcripts as text, JSON lines, NIST's CTM, and subtitles (SubRip, WebVTT)."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from espnet_ee.decode.transcript import Transcript
from espnet_ee.errors import UserError
from espnet_ee.search.words import Word

# A subtitle of two lines, as broadcasters make them; it ends where nobody speaks, and stays long enough to be read.
_LINE, _LINES, _SECONDS, _PAUSE, _STAYS = 42, 2, 7.0, 1.0, 1.0


class Cue(NamedTuple):
    """A subtitle: from when to when, in seconds, which lines."""

    start: float
    end: float
    lines: tuple[str, ...]


def text_of(transcript: Transcript) -> str:
    """The text, on one line."""
    return transcript.text + "\n"


def json_of(transcript: Transcript) -> str:
    """One object on one line; of a recording in several pieces also these, as ``segments``."""
    named = {} if transcript.audio.name == str(transcript.audio.path) else {"id": transcript.audio.name}
    content: dict[str, Any] = {
        **named,
        "file": "-" if transcript.audio.name == "-" else str(transcript.audio.path),  # not where standard input is kept
        "text": transcript.text,
        "exit_layer": transcript.exit_layer,
        "seconds": round(transcript.seconds, 3),
        "macs": transcript.macs,
        "policy": transcript.policy,
        "words": [_rounded(word) for word in transcript.words],
    }
    if len(transcript.parts) > 1:
        content["segments"] = [
            {
                "start": round(part.start, 3),
                "end": round(part.start + part.seconds, 3),
                "text": part.recognition.text,
                "exit_layer": part.recognition.exit_layer,
            }
            for part in transcript.parts
        ]
    return json.dumps(content, ensure_ascii=False) + "\n"


def ctm_of(transcript: Transcript) -> str:
    """A line a word: recording, channel, start, duration, word, confidence."""
    return ctm_lines(transcript.audio.stem, _timed(transcript))


def ctm_lines(name: str, words: Iterable[Word]) -> str:
    """The lines of a recording of this name."""
    return "".join(
        f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {word.text} {word.confidence:.4f}\n" for word in words
    )


def srt_of(transcript: Transcript) -> str:
    """Subtitles as SubRip has them."""
    blocks = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(cues(transcript), 1)
    ]
    return "\n".join(blocks)


def vtt_of(transcript: Transcript) -> str:
    """Subtitles as WebVTT."""
    blocks = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n" + html.escape("\n".join(cue.lines), quote=False) + "\n"
        for cue in cues(transcript)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "text": text_of,
    "json": json_of,
    "ctm": ctm_of,
    "srt": srt_of,
    "vtt": vtt_of,
}
"""By name, what writes a transcript."""
ONE_BY_ONE = ("srt", "vtt")
"""Formats of which several cannot stand in one file."""


def cues(transcript: Transcript) -> Iterator[Cue]:
    """Subtitles of two lines at most, in order and without overlap."""
    groups: list[list[Word]] = []
    for word in _timed(transcript):
        if not groups or not _fits(groups[-1], word):
            groups.append([])
        groups[-1].append(word)
    for number, group in enumerate(groups):
        limit = groups[number + 1][0].start if number + 1 < len(groups) else transcript.seconds
        end = max(group[-1].end, min(group[0].start + _STAYS, limit))
        yield Cue(group[0].start, end, tuple(_wrapped(group)))


def _fits(group: list[Word], word: Word) -> bool:
    return (
        word.start - group[-1].end < _PAUSE
        and word.end - group[0].start <= _SECONDS
        and len(_wrapped([*group, word])) <= _LINES
    )


def _wrapped(words: list[Word]) -> list[str]:
    text = " ".join(word.text for word in words)
    return textwrap.wrap(text, _LINE, break_long_words=False, break_on_hyphens=False)


def _timed(transcript: Transcript) -> tuple[Word, ...]:
    if transcript.text and not transcript.words:
        raise UserError("the model does not tell how long its frames are, so words have no times; take --format text or json")
    return transcript.words


def _rounded(word: Word) -> dict[str, Any]:
    times = {"start": round(word.start, 3), "end": round(word.end, 3)}
    return {"text": word.text, **times, "confidence": round(word.confidence, 4)}


def _clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and thousandths.

    >>> _clock(3725.0404, ",")
    '01:02:05,040'
    """
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
