"""The mini corpus is the same bytes everywhere, fits its own dictionary, and is hard in degrees."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from espnet_ee.data.audio import read_int16
from espnet_ee.data.datadir import validate_data_dir
from espnet_ee.data.format_audio import format_audio
from espnet_ee.data.mini.draws import Random
from espnet_ee.data.mini.make import SPEAKERS, make_corpus, make_noise, make_utterance
from espnet_ee.data.mini.reader import Mini
from espnet_ee.data.mini.sentences import TEMPLATES, WORDS, make_sentence, pronounce
from espnet_ee.data.mini.voice import PHONES
from espnet_ee.data.prepare import prepare_set
from espnet_ee.data.speed import perturb_speed
from espnet_ee.data.word_times import read_word_times
from espnet_ee.errors import UsageError, UserError
from espnet_ee.kaldi import read_scp

TreeBytes = Callable[[Path], dict[str, bytes]]


def test_same_bytes_for_any_number_of_processes_and_every_time(mini_root: Path, tmp_path: Path, tree_bytes: TreeBytes) -> None:
    counts = make_corpus(tmp_path, nj=2, utterances_per_speaker=1)
    assert counts == {"train": 18, "dev": 8, "test": 16}
    assert tree_bytes(tmp_path / "MiniSpeech") == tree_bytes(mini_root / "MiniSpeech")


def test_more_utterances_do_not_change_the_first(mini_root: Path) -> None:
    samples, sentence = make_utterance(0, 101, 0)
    stored = mini_root / "MiniSpeech" / "train" / "101" / "1011"
    assert (read_int16(stored / "101-1011-0000.flac")[0] == samples).all()
    assert (stored / "101-1011.trans.txt").read_text() == f"101-1011-0000 {sentence.text}\n"


def test_samples_have_not_changed() -> None:
    """A change here is a new corpus: results on the old one no longer compare."""
    samples, sentence = make_utterance(0, 101, 0)
    assert sentence.text == "AGAIN HIS RAIN KICK DARK FOX"
    assert hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()[:16] == "1f4f2571d7ebb941"


def test_when_words_are_said_is_known(mini_root: Path) -> None:
    """The sound's edges are where the first word begins and the last ends; the gaps between words are what the voice leaves."""
    for number in range(5):
        samples, sentence = make_utterance(3, 102, number)
        times = sentence.times
        assert len(times) == len(sentence.text.split()) and sentence.seconds == len(samples) / 16000
        assert all(0.02 < later[0] - word[1] < 0.08 and word[1] - word[0] > 0.05 for word, later in pairwise(times))
        power = np.square(samples[: len(samples) // 160 * 160].reshape(-1, 160).astype(np.float64)).mean(axis=1)
        if sentence.noise == "none":
            loud = np.flatnonzero(power > power.max() / 1000) / 100
            assert abs(loud[0] - times[0][0]) < 0.08 and abs(loud[-1] - times[-1][1]) < 0.08
    lines = (mini_root / "MiniSpeech/words.ctm").read_text().splitlines()
    _, sentence = make_utterance(0, 101, 0)
    assert [line.split()[4] for line in lines if line.startswith("101-1011-0000 ")] == sentence.text.split()


def test_data_directories_know_when_words_are_said(mini_root: Path, tmp_path: Path) -> None:
    """Stage 1 gives each set its own, stage 3 carries it; what is spoken at other speeds has none, and a broken one is refused."""
    known = read_word_times(mini_root / "MiniSpeech/words.ctm")
    for name in ("train", "dev"):
        prepare_set(Mini(mini_root), name, tmp_path / name)
        format_audio(tmp_path / name, tmp_path / "dump" / name, 16000)
        texts = read_scp(tmp_path / name / "text")
        for folder in (tmp_path / name, tmp_path / "dump" / name):
            own = read_word_times(folder / "words.ctm")
            assert own == {utt_id: known[utt_id] for utt_id in texts}
            assert {utt_id: " ".join(word for word, *_ in words) for utt_id, words in own.items()} == texts
            validate_data_dir(folder)
    perturb_speed(tmp_path / "dev", tmp_path / "faster", ["1.1"], tmp_path / "audio")
    assert not (tmp_path / "faster/words.ctm").exists()
    (tmp_path / "dev/words.ctm").write_text(";; comment\n201-2011-0000 1 0.1 0.2 A 0.9\n201-2011-0000 1 nan 0.2 B\n")
    with pytest.raises(UserError, match=r"words\.ctm:3: is not 'utterance channel start duration word'"):
        validate_data_dir(tmp_path / "dev")
    (mini_root / "MiniSpeech/words.ctm").rename(tmp_path / "words.ctm")
    try:
        prepare_set(Mini(mini_root), "test", tmp_path / "test")
    finally:
        (tmp_path / "words.ctm").rename(mini_root / "MiniSpeech/words.ctm")
    assert not (tmp_path / "test/words.ctm").exists()


def test_seed_and_speaker_change_the_speech() -> None:
    utterances = [make_utterance(seed, speaker, 0)[0].tobytes() for seed in (0, 1) for speaker in (101, 102)]
    assert len(set(utterances)) == 4


def test_random_depends_on_its_names_alone() -> None:
    assert Random("a", 1).uniform(0, 1) == Random("a", 1).uniform(0, 1) != Random("a", 2).uniform(0, 1)
    assert abs(float(np.mean(Random("b").noise(100000) ** 2)) - 1) < 0.02


def test_every_word_can_be_spoken_and_sounds_unlike_every_other() -> None:
    words = [word for kind in WORDS.values() for word in kind]
    sounds = {tuple(pronounce(word)) for word in words}
    assert len(words) == len(set(words)) == len(sounds) >= 100
    assert {phone for sound in sounds for phone in sound} | {"-"} == set(PHONES)
    with pytest.raises(UserError, match="no rule for '1'"):
        pronounce("A1")


def test_sentences_have_three_to_eight_words_and_use_the_whole_vocabulary() -> None:
    sentences = [make_sentence(Random(number)).split() for number in range(2000)]
    assert all(3 <= len(sentence) <= 8 for sentence in sentences)
    assert {word for sentence in sentences for word in sentence} == {word for kind in WORDS.values() for word in kind}
    assert {len(template.split()) for template in TEMPLATES} >= {3, 5, 8}


@pytest.mark.parametrize("kind", ["white", "pink", "babble"])
def test_noise_has_unit_power(kind: str) -> None:
    noise = make_noise(kind, 8001, Random(kind))
    assert len(noise) == 8001 and abs(float(np.mean(noise**2)) - 1) < 0.1


def test_difficulty_is_told(mini_root: Path) -> None:
    with open(mini_root / "MiniSpeech" / "difficulty.tsv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert len(rows) == 42 and {row["set"] for row in rows} == set(SPEAKERS)
    for row in rows:
        assert (row["noise"] == "none") == (row["snr_db"] == "inf")
        assert float(row["snr_db"]) >= 5 and 0.8 <= float(row["rate"]) <= 1.35 and float(row["seconds"]) > 0.5


def test_samples_neither_clip_nor_vanish(mini_root: Path) -> None:
    for path in (mini_root / "MiniSpeech").rglob("*.flac"):
        samples = np.abs(read_int16(path)[0].astype(np.int32))
        assert samples.max() > 5000 and (samples >= 32767).mean() < 1e-3


def test_other_folders_and_counts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "MiniSpeech").mkdir()
    (tmp_path / "MiniSpeech" / "thesis.tex").touch()
    with pytest.raises(UserError, match="MiniSpeech: exists"):
        make_corpus(tmp_path)
    with pytest.raises(UsageError, match="--utterances_per_speaker 0"):
        make_corpus(tmp_path, utterances_per_speaker=0)
