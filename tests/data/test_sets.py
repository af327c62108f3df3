"""Sets laid side by side: what a test set shares with training, and what training lacks; a line each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ee.cli.main import main
from espnet_ee.data.sets import compare_sets
from espnet_ee.errors import UsageError
from espnet_ee.kaldi import write_scp


def make_set(
    folder: Path, name: str, texts: dict[str, str], wavs: dict[str, Path], segments: dict[str, str] | None = None
) -> Path:
    for table, values in (("text", texts), ("utt2spk", dict.fromkeys(texts, "s")), ("segments", segments)):
        if values is not None:
            write_scp(folder / name / table, values)
    write_scp(folder / name / "wav.scp", {key: str(path) for key, path in wavs.items()})
    return folder / name


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    """Five different recordings of one length, so that only their content tells them apart."""
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.wav" for number in range(5)]
    for path in paths:
        soundfile.write(path, random.uniform(-0.1, 0.1, 1600), 16000)
    return paths


def test_sets_with_nothing_in_common_are_silent(tmp_path: Path, sounds: list[Path], capsys) -> None:
    train = make_set(tmp_path, "train", {"a": "ONE TWO", "b": "TWO"}, {"a": sounds[0], "b": sounds[1]})
    test = make_set(tmp_path, "test", {"c": "TWO ONE"}, {"c": sounds[2]})
    main(["data", "sets", "--train", str(train), "--data", str(test)])
    assert capsys.readouterr().out == ""


def test_utterances_of_training_are_found_by_id_and_by_sound_under_another_name(tmp_path: Path, sounds: list[Path]) -> None:
    train = make_set(tmp_path, "train", {"a": "A", "b": "A"}, {"a": sounds[0], "b": sounds[1]})
    copy = tmp_path / "copy" / "other.wav"
    copy.parent.mkdir()
    copy.write_bytes(sounds[1].read_bytes())
    test = make_set(tmp_path, "test", {"a": "A", "c": "A", "d": "A"}, {"a": sounds[2], "c": copy, "d": sounds[3]})
    (line,) = compare_sets(train, [test])
    assert line.startswith("warning: test: 2 of its 3 utterances ARE IN train, TOO (1 by id and 1 by sound; the first: a)")


def test_segments_of_one_recording_are_the_same_sound_only_where_they_overlap(tmp_path: Path, sounds: list[Path]) -> None:
    train = make_set(tmp_path, "train", {"a": "A"}, {"r": sounds[0]}, {"a": "r 0 0.05"})
    test = make_set(tmp_path, "test", {"b": "A", "c": "A"}, {"q": sounds[0]}, {"b": "q 0.04 0.08", "c": "q 0.05 0.1"})
    heard, recorded = compare_sets(train, [test])
    assert "1 of its 2 utterances ARE IN train, TOO (1 by sound; the first: b)" in heard
    assert "1 of its 2 utterances are other stretches of recordings that train has, too (the first: c)" in recorded


def test_characters_that_training_lacks_and_doubled_blanks_are_counted(tmp_path: Path, sounds: list[Path]) -> None:
    train = make_set(tmp_path, "train", {"a": "A  B", "b": "B"}, {"a": sounds[0], "b": sounds[1]})
    test = make_set(tmp_path, "test", {"c": "A ÉÖB", "d": "É", "e": "B"}, dict(zip("cde", sounds[2:], strict=True)))
    blanks, signs = compare_sets(train, [test])
    assert blanks.startswith("warning: train: 1 of 2 texts hold several blanks in a row (the first: a)")
    assert signs.startswith(r"warning: test: 2 characters of its texts (É Ö; in 2 of 3) are in none of train")


def test_a_set_named_twice_is_refused(tmp_path: Path, sounds: list[Path]) -> None:
    train = make_set(tmp_path, "train", {"a": "A"}, {"a": sounds[0]})
    test = make_set(tmp_path, "test", {"c": "A"}, {"c": sounds[2]})
    with pytest.raises(UsageError, match="named twice"):
        compare_sets(train, [test, tmp_path / "." / "test"])
