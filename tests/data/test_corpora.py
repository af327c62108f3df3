"""Readers of corpora: what they yield, and what they say of a corpus that is missing or broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from espnet_ee.data.datadir import validate_data_dir
from espnet_ee.data.librispeech import parts_of
from espnet_ee.data.prepare import prepare_set
from espnet_ee.data.registry import CORPORA, open_corpus
from espnet_ee.errors import UsageError, UserError

WriteSphere = Callable[..., None]


@pytest.fixture
def an4_root(tmp_path: Path, write_sphere: WriteSphere) -> Path:
    """AN4 in small: 103 training utterances of two speakers and one for test."""
    base = tmp_path / "an4"
    lines: dict[str, list[tuple[str, str]]] = {
        "train": [("mzzz", f"an{n}-mzzz-b") for n in range(100, 150)] + [("fash", f"cen{n}-fash-b") for n in range(53)],
        "test": [("fcaw", "an406-fcaw-b")],
    }
    (base / "etc").mkdir(parents=True)
    for part, folder in (("train", "an4_clstk"), ("test", "an4test_clstk")):
        paths = [f"{folder}/{speaker}/{name}" for speaker, name in lines[part]]
        (base / "etc" / f"an4_{part}.fileids").write_text("".join(f"{path}\n" for path in paths))
        marked = part == "train"
        words = "<s> GO  ON </s>" if marked else "GO  ON"
        text = "".join(f"{words} ({name})\n" for _, name in lines[part])
        (base / "etc" / f"an4_{part}.transcription").write_text(text)
        for path in paths:
            write_sphere(base / "wav" / f"{path}.sph", np.arange(1, 9))
    return tmp_path


@pytest.mark.parametrize("inner", ["", "an4"])
def test_an4_sets_are_espnets(inner: str, an4_root: Path) -> None:
    corpus = open_corpus("an4", an4_root / inner)
    sets = {name: [utterance.utt_id for utterance in corpus.utterances(name)] for name in corpus.sets}
    assert {name: len(utt_ids) for name, utt_ids in sets.items()} == {"train_nodev": 3, "train_dev": 100, "test": 1}
    assert sets["test"] == ["fcaw-an406-fcaw-b"]
    whole = sets["train_dev"] + sets["train_nodev"]
    assert whole == sorted(whole) and whole[0] == "fash-cen0-fash-b"
    (utterance,) = corpus.utterances("test")
    assert (utterance.speaker, utterance.text) == ("fcaw", "GO ON")


def test_an4_becomes_a_valid_data_directory(an4_root: Path, tmp_path: Path) -> None:
    assert prepare_set(open_corpus("an4", an4_root), "train_dev", tmp_path / "data").utterances == 100
    assert validate_data_dir(tmp_path / "data").tables["text"]["fash-cen0-fash-b"] == "GO ON"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("an4_test.transcription", "GO  ON (an406-fcaw-b)\n", "", "'an406-fcaw-b' has no line in .*transcription"),
        ("an4_test.fileids", "an4test_clstk/fcaw/an406-fcaw-b\n", "", "'an406-fcaw-b' has no line in .*fileids"),
        ("an4_test.transcription", "(an406-fcaw-b)", "an406", r"transcription:1: not 'WORDS \(NAME\)'"),
        ("an4_test.transcription", "GO  ON", "<s> </s>", r"transcription:1: not 'WORDS \(NAME\)'"),
        ("an4_test.fileids", "fcaw/an406", "gone/an406", r"fileids:1: there is no .*gone/an406-fcaw-b\.sph"),
    ],
)
def test_broken_an4_is_refused(file: str, old: str, new: str, message: str, an4_root: Path) -> None:
    path = an4_root / "an4" / "etc" / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        list(open_corpus("an4", an4_root).utterances("test"))


def test_an4_loses_no_last_line(an4_root: Path) -> None:
    """Neither list ends with a line end."""
    for name in ("an4_test.fileids", "an4_test.transcription"):
        path = an4_root / "an4" / "etc" / name
        path.write_text(path.read_text().rstrip("\n"))
    assert len(list(open_corpus("an4", an4_root).utterances("test"))) == 1


@pytest.mark.parametrize(("content", "message"), [(b"\xff\n", "fileids:1: not UTF-8"), (b"a/b/c\r\n", "fileids:1: .*carriage")])
def test_an4_lists_are_read_as_any_text(content: bytes, message: str, an4_root: Path) -> None:
    (an4_root / "an4" / "etc" / "an4_test.fileids").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(open_corpus("an4", an4_root).utterances("test"))


@pytest.mark.parametrize("name", CORPORA)
def test_missing_corpus_says_where_and_what_to_set(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        corpus = open_corpus(name, tmp_path / "nowhere")
        list(corpus.utterances(next(iter(corpus.sets))))
    message = str(caught.value)
    assert f"{tmp_path}/nowhere/" in message
    assert f"--{name}_root" in message and f"{name.upper()} in db.sh" in message


def test_mini_is_read_as_it_was_made(mini_root: Path) -> None:
    corpus = open_corpus("mini", mini_root)
    assert {name: len(list(corpus.utterances(name))) for name in corpus.sets} == {"train": 18, "dev": 8, "test": 16}
    first = next(iter(corpus.utterances("train")))
    assert (first.utt_id, first.speaker) == ("101-1011-0000", "101-1011")
    assert first.text == first.text.upper() and first.audio.is_file()


@pytest.fixture
def librispeech_root(mini_root: Path, tmp_path: Path) -> Path:
    """The mini corpus under the names of LibriSpeech's parts."""
    base = tmp_path / "LibriSpeech"
    base.mkdir()
    for part, name in (("train-clean-5", "train"), ("dev-clean", "dev"), ("dev-other", "test")):
        (base / part).symlink_to(mini_root / "MiniSpeech" / name)
    return tmp_path


def test_librispeech_finds_its_parts(librispeech_root: Path) -> None:
    assert list(open_corpus("librispeech", librispeech_root).sets) == ["train_clean_5", "dev_clean", "dev_other"]
    assert next(iter(open_corpus("librispeech", librispeech_root / "LibriSpeech").sets)) == "train_clean_5"


def test_librispeech_joins_parts(librispeech_root: Path) -> None:
    corpus = open_corpus("librispeech", librispeech_root, ["train-clean-5", "dev=dev-clean+dev_other"])
    assert {name: len(list(corpus.utterances(name))) for name in corpus.sets} == {"train-clean-5": 18, "dev": 24}


def test_a_set_is_called_as_it_is_asked_for(librispeech_root: Path, tmp_path: Path) -> None:
    for name in ("train-clean-5", "train_clean_5"):
        corpus = open_corpus("librispeech", librispeech_root, [name])
        assert prepare_set(corpus, name, tmp_path / name).utterances == 18
    with pytest.raises(UsageError, match="train_clean_5.* with a new name"):
        open_corpus("librispeech", librispeech_root, ["train-clean-5", "train_clean_5"])


def test_the_parts_to_download_are_those_that_are_read() -> None:
    assert parts_of(["train=train-clean-5+dev_clean_2", "train-460", "dev", "dev_clean"]) == [
        "train-clean-5", "dev-clean-2", "train-clean-100", "train-clean-360", "dev-clean", "dev-other",
    ]  # fmt: skip
    assert parts_of(["train_clean_5", "dev", "test"], hold_out=2) == ["train-clean-5"]
    with pytest.raises(UsageError, match="--parts: is empty"):
        parts_of([])


def test_an_incomplete_set_is_told(librispeech_root: Path, tmp_path: Path) -> None:
    corpus = open_corpus("librispeech", librispeech_root, ["train_clean_5", "dev", "mine=train-clean-5+somewhere"])
    assert [corpus.distributed(name) for name in corpus.sets] == [1519, 5567, None]
    made = prepare_set(corpus, "dev", tmp_path / "dev")
    assert "24 utterances; warning: the published set has 5567" in made.describe(tmp_path)
    assert "warning" not in replace(made, distributed=24).describe(tmp_path)
    held = open_corpus("librispeech", librispeech_root, ["train_clean_5"], {"hold_out": "2"})
    assert {held.distributed(name) for name in held.sets} == {None}


def test_librispeech_names_the_missing_part(librispeech_root: Path) -> None:
    with pytest.raises(UserError, match="no .*test-clean"):
        list(open_corpus("librispeech", librispeech_root, ["test-clean"]).utterances("test-clean"))


@pytest.mark.parametrize("part", ["", "a=", "=b", "a+b", "a=b+", "../x=b", "a/b=b", ".x=b", "a b=b"])
def test_librispeech_refuses_malformed_parts(part: str, librispeech_root: Path) -> None:
    if part == "a=":
        assert list(open_corpus("librispeech", librispeech_root, [part]).sets) == ["a"]
        return
    with pytest.raises(UsageError, match="is not PART or NAME=PART"):
        open_corpus("librispeech", librispeech_root, [part])


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no corpus 'wsj'; choose from mini an4 librispeech"):
        open_corpus("wsj", tmp_path)
    with pytest.raises(UsageError, match="an4 has no 'eval'; choose from train_nodev train_dev test"):
        open_corpus("an4", tmp_path, ["eval"])


@pytest.fixture
def chapter(tmp_path: Path, tone: Callable[[int], np.ndarray]) -> Path:
    """One chapter of two utterances, in the mini corpus' place."""
    folder = tmp_path / "MiniSpeech" / "train" / "1" / "2"
    folder.mkdir(parents=True)
    for name in ("1-2-0000", "1-2-0001"):
        (folder / f"{name}.flac").touch()
    (folder / "1-2.trans.txt").write_text("1-2-0000 GO\n1-2-0001 NO\n")
    return folder


@pytest.mark.parametrize(
    ("transcript", "message"),
    [
        ("1-2-0000 GO\n", r"1-2-0001\.flac: has no line in .*1-2\.trans\.txt"),
        ("1-2-0000 GO\n1-2-0001 NO\n1-2-0002 GO\n", r"1-2\.trans\.txt:3: there is no .*1-2-0002\.flac"),
        ("1-2-0000 GO\n1-2-0001\n", r"1-2\.trans\.txt:2: nothing follows the key"),
        ("1-2-0000 GO\n1-2-0000 GO\n", r"1-2\.trans\.txt:2: the key .* was given before"),
        (None, r"1-2\.trans\.txt: no such file"),
    ],
)
def test_broken_chapter_is_refused(transcript: str | None, message: str, chapter: Path, tmp_path: Path) -> None:
    path = chapter / "1-2.trans.txt"
    path.unlink() if transcript is None else path.write_text(transcript)
    with pytest.raises(UserError, match=message):
        list(open_corpus("mini", tmp_path).utterances("train"))


@pytest.fixture
def four_readers(tmp_path: Path) -> Path:
    """A part of four readers with two chapters each."""
    for reader in ("7", "19", "83", "1001"):
        for chapter in ("1", "2"):
            folder = tmp_path / "train-clean-5" / reader / chapter
            folder.mkdir(parents=True)
            name = f"{reader}-{chapter}"
            (folder / f"{name}-0000.flac").touch()
            (folder / f"{name}.trans.txt").write_text(f"{name}-0000 GO\n")
    return tmp_path


def test_whole_readers_are_held_out_the_same_ones_every_time(four_readers: Path) -> None:
    corpus = open_corpus("librispeech", four_readers, ["dev", "train_clean_5", "test"], {"hold_out": "2"})
    readers = {name: [u.speaker.split("-")[0] for u in corpus.utterances(name)] for name in corpus.sets}
    assert readers == {"train_clean_5": ["1001", "1001", "19", "19"], "dev": ["7", "7"], "test": ["83", "83"]}


@pytest.mark.parametrize(
    ("parts", "count", "message"),
    [
        (["train_clean_5", "train_clean_100", "dev"], "2", "name one in --sets"),
        (["train_clean_5"], "1", "hold_out=1: give 0, or a number of readers from 2"),
        (["train_clean_5"], "two", "hold_out=two"),
        (["train_clean_5"], "4", "has only 4 readers; hold out fewer"),
    ],
)
def test_impossible_hold_outs_are_refused(four_readers: Path, parts: list[str], count: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpus = open_corpus("librispeech", four_readers, parts, {"hold_out": count})
        list(corpus.utterances("train_clean_5"))


def test_espnets_joined_sets_are_known(librispeech_root: Path) -> None:
    corpus = open_corpus("librispeech", librispeech_root, ["dev", "train_960"])
    assert corpus.sets["train_960"] == ("train-clean-100", "train-clean-360", "train-other-500")
    assert len(list(corpus.utterances("dev"))) == 24
