"""Every way we know a corpus can be broken: an error that names file and line and the remedy, or a counted skip.

A row: what is wrong, how it is made, what is said. ``SKIP`` rows are errors, too, in a set that is scored.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ee.data.datadir import validate_data_dir
from espnet_ee.data.features import extract_features
from espnet_ee.data.format_audio import format_audio
from espnet_ee.data.length_filter import filter_lengths
from espnet_ee.data.prepare import prepare_set
from espnet_ee.data.registry import open_corpus
from espnet_ee.data.skips import Skip, settle
from espnet_ee.errors import UserError
from espnet_ee.kaldi import read_scp

RATE = 16000
CHAPTER = "LibriSpeech/train-clean-5/1/2"
TRANS = f"{CHAPTER}/1-2.trans.txt"
STM = "TEDLIUM_release2/train/stm/Talk.stm"


@dataclass
class Place:
    """A folder with a healthy LibriSpeech chapter of two utterances, a TED-LIUM talk of two segments, and its sets."""

    root: Path
    write_sphere: Callable[..., None]

    def build(self) -> None:
        for number in range(2):
            self.audio(f"{CHAPTER}/1-2-000{number}.flac", noise(RATE))
        self.text(TRANS, "1-2-0000 GO ON\n1-2-0001 NO\n")
        self.write_sphere(self.root / "TEDLIUM_release2/train/sph/Talk.sph", noise(4 * RATE))
        self.text(STM, "Talk 1 Talk 0.5 1.5 <NA> go on\nTalk 1 Talk 1.5 3.5 <NA> no\n")

    def text(self, name: str, content: str | bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def audio(self, name: str, samples: np.ndarray, rate: int = RATE, **how: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate, **{"subtype": "PCM_16", **how})

    def bytes_of(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def edit(self, name: str, old: str, new: str) -> None:
        content = self.bytes_of(name).decode()
        assert old in content
        self.text(name, content.replace(old, new, 1))

    def prepare(self, corpus: str, limit: float = 0) -> tuple[Skip, ...]:
        name = "train-clean-5" if corpus == "librispeech" else "train"
        made = prepare_set(open_corpus(corpus, self.root, [name]), name, self.root / "data" / corpus, limit)
        validate_data_dir(self.root / "data" / corpus)
        return made.skips


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(-9000, 9000, count).astype(np.int16)


@pytest.fixture
def place(tmp_path: Path, write_sphere: Callable[..., None]) -> Place:
    made = Place(tmp_path, write_sphere)
    made.build()
    return made


def test_the_healthy_corpora_pass(place: Place) -> None:
    for corpus in ("librispeech", "tedlium2"):
        assert place.prepare(corpus) == ()
        assert format_audio(place.root / "data" / corpus, place.root / "dump" / corpus, RATE).utterances == 2
        assert not (place.root / "dump" / corpus / "skipped").exists()


# --- the corpus as it is distributed: what stage 1 says ---------------------------------------------------------------

Break = Callable[[Place], None]


def stm(line: str) -> Break:
    """The second segment's line is replaced."""
    return lambda place: place.edit(STM, "Talk 1 Talk 1.5 3.5 <NA> no", line)


STRUCTURE: dict[str, tuple[str, Break, str]] = {
    "text without audio": ("librispeech", lambda p: (p.root / f"{CHAPTER}/1-2-0001.flac").unlink(), r"trans\.txt:2: there is no .*0001\.flac; unpack"),
    "audio without text": ("librispeech", lambda p: p.text(TRANS, "1-2-0000 GO\n"), r"0001\.flac: has no line in .*trans\.txt; add"),
    "transcript missing": ("librispeech", lambda p: (p.root / TRANS).unlink(), r"1-2\.trans\.txt: no such file; unpack the corpus again"),
    "duplicate id": ("librispeech", lambda p: p.text(TRANS, "1-2-0000 GO\n1-2-0000 GO\n"), r"trans\.txt:2: the key '1-2-0000' was given before; keep"),
    "blank transcript": ("librispeech", lambda p: p.text(TRANS, "1-2-0000 GO\n1-2-0001 \n"), r"trans\.txt:2: nothing follows"),
    "empty transcript file": ("librispeech", lambda p: p.text(TRANS, ""), r"0000\.flac: has no line in"),
    "empty line": ("librispeech", lambda p: p.text(TRANS, "1-2-0000 GO\n\n1-2-0001 NO\n"), r"trans\.txt:2: empty line; delete"),
    "not UTF-8": ("librispeech", lambda p: p.text(TRANS, b"1-2-0000 GO\n1-2-0001 \xff\xfe\n"), r"trans\.txt:2: not UTF-8; convert"),
    "UTF-16": ("librispeech", lambda p: p.text(TRANS, "1-2-0000 GO\n".encode("utf-16")), r"trans\.txt:1: not UTF-8"),
    "byte order mark": ("librispeech", lambda p: p.text(TRANS, b"\xef\xbb\xbf" + p.bytes_of(TRANS)), r"trans\.txt:1: begins with a byte order mark; remove"),
    "CRLF": ("librispeech", lambda p: p.text(TRANS, b"1-2-0000 GO\r\n1-2-0001 NO\r\n"), r"trans\.txt:1: ends with a carriage return; convert"),
    "id of another chapter": ("librispeech", lambda p: (p.root / f"{CHAPTER}/1-2-0001.flac").rename(p.root / f"{CHAPTER}/9-9-0.flac") and p.edit(TRANS, "1-2-0001", "9-9-0"), r"trans\.txt:2: '9-9-0' does not begin with 1-2-"),
    "the same chapter in two parts": ("two parts", lambda p: (p.root / "LibriSpeech/dev-clean-2").symlink_to(p.root / "LibriSpeech/train-clean-5"), r"0000\.flac: the utterance '1-2-0000' was there before .*; keep one"),
    "part without chapters": ("librispeech", lambda p: [path.unlink() for path in (p.root / CHAPTER).iterdir()] and [(p.root / CHAPTER).rmdir(), (p.root / CHAPTER).parent.rmdir()], r"train-clean-5: no SPEAKER/CHAPTER folders"),
    "sph missing": ("tedlium2", lambda p: (p.root / "TEDLIUM_release2/train/sph/Talk.sph").unlink(), r"Talk\.stm:1: there is no .*Talk\.sph; unpack"),
    "stm missing": ("tedlium2", lambda p: p.write_sphere(p.root / "TEDLIUM_release2/train/sph/Other.sph", noise(9)), r"Other\.sph: there is no .*Other\.stm; unpack"),
    "no stm at all": ("tedlium2", lambda p: (p.root / STM).unlink(), r"stm: no \.stm files in it; unpack"),
    "stm of another talk": ("tedlium2", stm("Walk 1 Walk 1.5 3.5 <NA> no"), r"Talk\.stm:2: is of the talk 'Walk'.*; move"),
    "stm without label": ("tedlium2", stm("Talk 1 Talk 1.5 3.5 no way"), r"Talk\.stm:2: not 'TALK CHANNEL .*; correct"),
    "stm line cut off": ("tedlium2", stm("Talk 1 Talk 1.5"), r"Talk\.stm:2: not 'TALK CHANNEL"),
    "stm time no number": ("tedlium2", stm("Talk 1 Talk one 3.5 <NA> no"), r"Talk\.stm:2: 'one' is not a time in seconds; correct"),
    "stm time nan": ("tedlium2", stm("Talk 1 Talk nan 3.5 <NA> no"), r"Talk\.stm:2: 'nan' is not a time"),
    "stm decimal comma": ("tedlium2", stm("Talk 1 Talk 1,5 3,5 <NA> no"), r"Talk\.stm:2: '1,5' is not a time"),
    "stm not UTF-8": ("tedlium2", lambda p: p.text(STM, p.bytes_of(STM) + b"\xff\n"), r"Talk\.stm:3: not UTF-8"),
    "stm CRLF": ("tedlium2", lambda p: p.text(STM, p.bytes_of(STM).replace(b"\n", b"\r\n")), r"Talk\.stm:1: ends with a carriage return"),
    "sph not SPHERE": ("tedlium2", lambda p: p.text("TEDLIUM_release2/train/sph/Talk.sph", b"x" * 2000), r"Talk\.sph: not readable"),
    "sph compressed": ("tedlium2", lambda p: p.text("TEDLIUM_release2/train/sph/Talk.sph", p.bytes_of("TEDLIUM_release2/train/sph/Talk.sph").replace(b"sample_coding -s3 pcm", b"sample_coding -s9 pcm,shorten")[:9000]), r"Talk\.sph: "),
}  # fmt: skip


@pytest.mark.parametrize("what", STRUCTURE)
def test_broken_structure_is_an_error_with_place_and_remedy(what: str, place: Place) -> None:
    corpus, spoil, message = STRUCTURE[what]
    spoil(place)
    with pytest.raises(UserError, match=message):
        if corpus == "two parts":
            prepare_set(open_corpus("librispeech", place.root, ["a=train-clean-5+dev-clean-2"]), "a", place.root / "data")
        else:
            # Even where a half of a training set might go: these are no faults of single utterances.
            place.prepare(corpus, limit=50)


SEGMENTS: dict[str, tuple[str, str]] = {
    "times reversed": ("Talk 1 Talk 3.5 1.5 <NA> no", r"Talk\.stm:2: the times 3\.5 and 1\.5 are reversed"),
    "no length": ("Talk 1 Talk 1.5 1.5 <NA> no", r"Talk\.stm:2: .*reversed"),
    "negative": ("Talk 1 Talk -1.5 3.5 <NA> no", r"Talk\.stm:2: the time -1\.5 is negative"),
    "beyond the end": ("Talk 1 Talk 1.5 9.5 <NA> no", r"Talk\.stm:2: 1\.5 to 9\.5 s lies beyond the end"),
    "wholly beyond the end": ("Talk 1 Talk 8.5 9.5 <NA> no", r"Talk\.stm:2: .*beyond the end"),
    "less than a sample": ("Talk 1 Talk 1.50000 1.50001 <NA> no", r"Talk\.stm:2: .*holds no sample"),
    "overlapping": ("Talk 1 Talk 0.6 3.5 <NA> no", r"Talk\.stm:2: overlaps the segment before it"),
}


@pytest.mark.parametrize("what", SEGMENTS)
def test_a_broken_segment_is_skipped_and_counted_but_never_silently(what: str, place: Place) -> None:
    line, message = SEGMENTS[what]
    stm(line)(place)
    (skip,) = place.prepare("tedlium2", limit=50)
    listed = read_scp(place.root / "data/tedlium2/skipped")
    assert list(listed) == [skip.utt_id]
    assert re.search(message, skip.reason)
    with pytest.raises(UserError, match=message):
        place.prepare("tedlium2")


# --- the audio: what stage 3 says -------------------------------------------------------------------------------------

VICTIM = f"{CHAPTER}/1-2-0001.flac"


def cut(name: str, share: float) -> Break:
    """Only the first part of the file is there."""

    def spoil(place: Place) -> None:
        content = place.bytes_of(name)
        place.text(name, content[: int(len(content) * share)])

    return spoil


def as_wav(samples: np.ndarray, **how: str) -> Break:
    """The second utterance becomes such a WAV file (under its name: what is in it decides)."""
    return lambda place: place.audio(VICTIM, samples, format="WAV", **how)


def with_nan(value: float) -> np.ndarray:
    samples = np.zeros(RATE, np.float32)
    samples[100] = value
    return samples


AUDIO: dict[str, tuple[Break, str]] = {
    "truncated FLAC": (cut(VICTIM, 0.5), r"0001\.flac: .*get the file again"),
    "FLAC of a header only": (cut(VICTIM, 0.003), r"0001\.flac: "),
    "truncated WAV": (lambda p: (as_wav(noise(RATE))(p), cut(VICTIM, 0.5)(p)), r"0001\.flac: cut short: \d+ of 16000 samples are there; get"),
    "empty file": (lambda p: p.text(VICTIM, b""), r"0001\.flac: is empty"),
    "no audio at all": (lambda p: p.text(VICTIM, "<html>404</html>" * 9), r"0001\.flac: not readable .*convert"),
    "NaN": (as_wav(with_nan(np.nan), subtype="FLOAT"), r"0001\.flac: holds samples that are not finite"),
    "infinity": (as_wav(with_nan(np.inf), subtype="FLOAT"), r"0001\.flac: holds samples that are not finite"),
    "stereo": (lambda p: p.audio(VICTIM, np.stack([noise(RATE)] * 2, 1)), r"0001\.flac: has 2 channels; make one mono"),
    "8 kHz": (lambda p: p.audio(VICTIM, noise(8000), 8000), r"0001\.flac: has 8000 Hz"),
    "zero length": (as_wav(noise(0)), r"0001\.flac: holds no samples; get"),
    "a folder": (lambda p: ((p.root / VICTIM).unlink(), (p.root / VICTIM).mkdir()), r"0001\.flac"),
}  # fmt: skip


@pytest.mark.parametrize("what", AUDIO)
def test_broken_audio_is_skipped_and_counted_in_training_and_an_error_elsewhere(what: str, place: Place) -> None:
    place.prepare("librispeech")
    spoil, message = AUDIO[what]
    spoil(place)
    data, out = place.root / "data/librispeech", place.root / "dump"
    made = format_audio(data, out, RATE, max_skipped=50)
    assert (made.utterances, [skip.utt_id for skip in made.skips]) == (1, ["1-2-0001"])
    assert f"1 utterances, 1 skipped (reasons: {out}/skipped)" in made.describe(out)
    assert list(validate_data_dir(out).tables["text"]) == ["1-2-0000"]
    assert list(read_scp(out / "skipped")) == ["1-2-0001"]
    with pytest.raises(UserError, match=message):
        format_audio(data, place.root / "scored", RATE)
    with pytest.raises(UserError, match=r"1 of 2 utterances are broken, more than 1 %.*--max_skipped"):
        format_audio(data, place.root / "scored", RATE, max_skipped=1)
    assert not (place.root / "scored").exists()


@pytest.mark.parametrize("what", ["truncated FLAC", "NaN", "8 kHz"])
def test_extraction_skips_the_same(what: str, place: Place) -> None:
    place.prepare("librispeech")
    AUDIO[what][0](place)
    data, out = place.root / "data/librispeech", place.root / "dump"
    assert [skip.utt_id for skip in extract_features(data, out, max_skipped=50).skips] == ["1-2-0001"]
    assert validate_data_dir(out).utt_ids == ["1-2-0000"]
    with pytest.raises(UserError, match=AUDIO[what][1]):
        extract_features(data, place.root / "scored")


def test_silence_and_a_single_sample_are_no_faults_of_the_file(place: Place) -> None:
    """A training set loses what is too short in stage 4, with its count; a scored set keeps it."""
    place.prepare("librispeech")
    place.audio(VICTIM, np.zeros(1, np.int16))
    assert format_audio(place.root / "data/librispeech", place.root / "dump", RATE).utterances == 2
    assert filter_lengths(place.root / "dump", place.root / "kept", 0.1, 30).dropped["too short"] == ["1-2-0001"]


# --- how many may go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "total", "percent", "allowed"),
    [(0, 5, 0, True), (1, 100, 1, True), (2, 100, 1, False), (1, 99, 1, False), (1, 1000, 0, False), (3, 3, 100, False)],
)
def test_the_limit(broken: int, total: int, percent: float, allowed: bool, tmp_path: Path) -> None:
    skips = [Skip(f"u{number}", f"file:{number}: broken; mend it") for number in range(broken)]
    if allowed:
        settle(skips, total, percent, "train", tmp_path)
        assert (tmp_path / "skipped").exists() == bool(broken)
        return
    with pytest.raises(UserError, match="file:0: broken; mend it"):
        settle(skips, total, percent, "train", tmp_path)


def test_there_are_at_least_forty_kinds() -> None:
    assert len(STRUCTURE) + len(SEGMENTS) + len(AUDIO) >= 40
