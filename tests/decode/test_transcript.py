"""Recordings piece by piece: batches change nothing, a bad one stops nobody; and how transcripts are written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from espnet_ee.data.audio_files import AudioFile
from espnet_ee.data.recording import Piece, Recording, open_recording
from espnet_ee.decode.formats import FORMATS, cues
from espnet_ee.decode.recognition import Recognition
from espnet_ee.decode.transcript import Part, Recognised, Transcriber, Transcript, when_asked
from espnet_ee.errors import UserError
from espnet_ee.search.words import Word

RATE = 10


class FakeRecording(Recording):
    """Pieces of one second, which count up."""

    def pieces(self) -> Iterator[Piece]:
        for number, _ in enumerate(self.cuts[1:]):
            if self.note == "breaks" and number == 2:
                raise UserError("broken in the middle")
            yield Piece(float(number), np.full(RATE, number + self.rate))


def recording_of(file: AudioFile) -> Recording:
    count = int(file.name[1:])
    if file.name.startswith("x"):
        raise UserError(f"{file.name}: cannot be opened")
    return FakeRecording(
        file.path, 100 * count, RATE, "breaks" if file.name.startswith("b") else "", tuple(range(0, RATE * count + 1, RATE))
    )


def recognition(text: str, exit_layer: int = 2, start: float = 0.1) -> Recognition:
    words = tuple(Word(word, start + 0.2 * place, start + 0.2 * place + 0.1, 0.5) for place, word in enumerate(text.split()))
    return Recognition(text, (), (), -1.0, exit_layer, 7, (), (), words)


def recognise(batch: Sequence[np.ndarray]) -> list[Recognised]:
    if any(samples[0] == 301 for samples in batch):
        raise UserError("not this one")
    return [(recognition(f"W{int(samples[0])}"), "p") for samples in batch]


def transcribe(names: Sequence[str], size: int, ahead: int = 0) -> tuple[list[Transcript], list[str]]:
    failed: list[str] = []
    fail = lambda file, error: failed.append(f"{file.name}: {error}")  # noqa: E731
    transcriber = Transcriber(recording_of, when_asked(recognise), RATE, size, fail, ahead)
    return list(transcriber(AudioFile(name, Path(name)) for name in names)), failed


@given(st.lists(st.sampled_from(["a1", "a2", "a3", "b4", "x1", "c5"]), max_size=9), st.integers(1, 7), st.integers(0, 3))
def test_batches_change_nothing_and_failures_stop_nobody(names: list[str], size: int, ahead: int) -> None:
    transcripts, failed = transcribe(names, size, ahead)
    good = [name for name in names if name in ("a1", "a2", "c5")]  # of a3 a piece cannot be recognised
    assert [transcript.audio.name for transcript in transcripts] == good
    assert sorted(line.partition(":")[0] for line in failed) == sorted(name for name in names if name not in good)
    for transcript in transcripts:
        count = int(transcript.audio.name[1:])
        assert transcript.text == " ".join(f"W{100 * count + number}" for number in range(count))
        assert [word.start for word in transcript.words] == pytest.approx([number + 0.1 for number in range(count)])
        assert transcript.seconds == count and transcript.macs == 7 * count


def test_the_place_of_a_failure_is_told() -> None:
    assert transcribe(["a3"], 2)[1] == ["a3: a3: at 1.00 s: not this one"]


def test_words_of_a_long_recording_are_those_of_its_parts_where_they_were_said(tmp_path: Path) -> None:
    """Bursts, whose loudness is the word, from 0.3 to 1 s apart, heard by what looks at loudness alone."""
    random, rate = np.random.default_rng(0), 22050
    parts, said, place = [random.normal(0, 1e-4, rate)], [], rate
    for number in range(80):
        sound = random.normal(0, 1, int(random.uniform(0.1, 1.0) * rate))
        loud = 0.01 * 2.0 ** (number % 5)
        parts += [loud * sound, random.normal(0, 1e-4, int(random.uniform(0.3, 1.0) * rate))]
        said.append(Word(f"W{number % 5}", place / rate, (place + len(sound)) / rate, 1.0))
        place += len(parts[-2]) + len(parts[-1])
    soundfile.write(tmp_path / "long.wav", np.concatenate(parts), rate)

    def hear(batch: Sequence[np.ndarray]) -> list[Recognised]:
        return [(replace(recognition(""), words=tuple(heard(samples))), "p") for samples in batch]

    for longest, ahead in ((20.0, 0), (3.0, 2)):
        fail: Callable[[AudioFile, UserError], None] = lambda file, error: pytest.fail(str(error))  # noqa: E731
        open_file = partial(open_recording, rate=16000, longest=longest)
        transcriber = Transcriber(lambda audio: open_file(audio.path), when_asked(hear), 16000, 3, fail, ahead)  # noqa: B023
        (found,) = transcriber([AudioFile("long", tmp_path / "long.wav")])
        assert [word.text for word in found.words] == [word.text for word in said]
        np.testing.assert_allclose([word.start for word in found.words], [word.start for word in said], atol=0.02)
        np.testing.assert_allclose([word.end for word in found.words], [word.end for word in said], atol=0.02)


def heard(samples: np.ndarray) -> Iterator[Word]:
    power = np.square(samples[: len(samples) // 160 * 160].reshape(-1, 160), dtype=np.float64).mean(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], power > 1e-6, [0]))))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        loudness = np.sqrt(np.median(power[first:last])) / 0.01
        yield Word(f"W{round(np.log2(loudness))}", first / 100, last / 100, 1.0)


def transcript(*parts: tuple[float, Recognition], seconds: float = 100.0, name: str = "d/my file.wav") -> Transcript:
    return Transcript(AudioFile(name, Path(name)), seconds, tuple(Part(start, 10.0, one, "p") for start, one in parts))


def test_json_of_one_piece_and_of_several() -> None:
    one = json.loads(FORMATS["json"](transcript((0.0, recognition("A B")))))
    assert one == {
        "file": "d/my file.wav", "text": "A B", "exit_layer": 2, "seconds": 100.0, "macs": 7, "policy": "p",
        "words": [{"text": "A", "start": 0.1, "end": 0.2, "confidence": 0.5}, {"text": "B", "start": 0.3, "end": 0.4, "confidence": 0.5}],
    }  # fmt: skip
    two = json.loads(FORMATS["json"](transcript((0.0, recognition("A")), (10.0, recognition("", 4)))))
    assert two["exit_layer"] == 3 and two["text"] == "A"
    assert two["segments"][1] == {"start": 10.0, "end": 20.0, "text": "", "exit_layer": 4}
    named = Transcript(AudioFile("utt1", Path("a.wav")), 1.0, (Part(0.0, 1.0, recognition("A"), "p"),))
    assert json.loads(FORMATS["json"](named))["id"] == "utt1"


def test_ctm_srt_and_vtt() -> None:
    spoken = transcript((0.0, recognition("A <B&")), (3700.0, recognition("C")), seconds=3710.0)
    assert FORMATS["text"](spoken) == "A <B& C\n"
    assert FORMATS["ctm"](spoken).splitlines() == [
        "my_file 1 0.100 0.100 A 0.5000", "my_file 1 0.300 0.100 <B& 0.5000", "my_file 1 3700.100 0.100 C 0.5000",
    ]  # fmt: skip
    assert FORMATS["srt"](spoken) == ("1\n00:00:00,100 --> 00:00:01,100\nA <B&\n\n2\n01:01:40,100 --> 01:01:41,100\nC\n")
    assert FORMATS["vtt"](spoken) == (
        "WEBVTT\n\n00:00:00.100 --> 00:00:01.100\nA &lt;B&amp;\n\n01:01:40.100 --> 01:01:41.100\nC\n"
    )


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 3), st.floats(0, 2)), max_size=40))
def test_subtitles_hold_every_word_without_overlap(spoken: list[tuple[int, float, float]]) -> None:
    words, clock = [], 0.0
    for letters, pause, lasts in spoken:
        words.append(Word("A" * letters, clock + pause, clock + pause + lasts, 1.0))
        clock = words[-1].end
    text = " ".join(word.text for word in words)
    whole = transcript((0.0, Recognition(text, (), (), 0.0, 1, 1, (), (), tuple(words))), seconds=clock)
    shown = list(cues(whole))
    assert " ".join(" ".join(cue.lines) for cue in shown) == text
    times = [time for cue in shown for time in (cue.start, cue.end)]
    assert times == sorted(times) and (not times or times[-1] <= clock)
    assert all(len(cue.lines) <= 2 and (len(line) <= 42 or " " not in line) for cue in shown for line in cue.lines)
    clocks = re.findall(r"(\d+:\d\d:\d\d,\d{3}) --> (\d+:\d\d:\d\d,\d{3})", FORMATS["srt"](whole))
    assert len(clocks) == len(shown)


def test_without_times_some_formats_say_so() -> None:
    silent = transcript((0.0, Recognition("A", (), (), 0.0, 1, 1, (), (), ())))
    assert json.loads(FORMATS["json"](silent))["words"] == []
    for name in ("ctm", "srt", "vtt"):
        with pytest.raises(UserError, match="words have no times"):
            FORMATS[name](silent)
