"""TED-LIUM: the text rules, exact times and names, both releases, and ESPnet's text for comparison."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from espnet_ee.data.audio import read_int16
from espnet_ee.data.datadir import validate_data_dir
from espnet_ee.data.format_audio import format_audio
from espnet_ee.data.prepare import prepare_set, write_lm_text
from espnet_ee.data.registry import open_corpus
from espnet_ee.data.skips import Skip
from espnet_ee.data.tedlium import espnet_text, plain_text
from espnet_ee.errors import UsageError, UserError

RATE = 16000
STM = """;; a comment
Talk_P 1 inter_segment_gap 0.00 0.29 <o,,unknown> ignore_time_segment_in_scoring
Talk_P 1 Talk_P 2.55 3.10 <o,f0,male> it 's the(2) <sil> end {SMACK}
Talk_P 1 Talk_P 0.29 1.15 <o,f0,male> the 'cause of <unk> it (Talk-1)
Talk_P 1 Talk_P 1.15 2.55 <o,f0,male> twice
Talk_P 1 Talk_P 1.15 2.55 <o,f0,male> twice
Talk_P 1 Talk_P 3.10 3.60 <NA> <unk>
"""
IDS = [
    "Talk_P-0000029-0000115", "Talk_P-0000115-0000255", "Talk_P-0000115-0000255-2", "Talk_P-0000255-0000310",
    "Talk_P-0000310-0000360",
]  # fmt: skip

MakeTalk = Callable[..., Path]


@pytest.fixture
def make_talk(tmp_path: Path, tone, write_sphere) -> MakeTalk:
    """Writes one talk of 4 s into a set's folder and returns the corpus' root."""

    def make(folder: str, stm: str = STM, talk: str = "Talk_P") -> Path:
        write_sphere(tmp_path / folder / "sph" / f"{talk}.sph", tone(4 * RATE))
        path = tmp_path / folder / "stm" / f"{talk}.stm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stm)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("it 's", "it's"),
        ("i 'd 've said", "i'd've said"),
        ("the 'cause and 'em", "the 'cause and 'em"),
        ("ten o 'clock y 'all", "ten o'clock y'all"),
        ("'s nothing before it", "'s nothing before it"),
        ("to(2) a(13) the", "to a the"),
        ("<sil> a {NOISE} b [BREATH]", "a b"),
        ("a <unk> 's b", "a's b"),
        ("last words (Talk-12-13.5)", "last words"),
        ("<unk>", ""),
        ("", ""),
        ("a  b ", "a b"),
    ],
)
def test_plain_text(raw: str, text: str) -> None:
    assert plain_text(raw) == text
    assert plain_text(text) == text, "a second time changes nothing"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("it 's the 'cause 'em", "it's the'cause 'em"),
        ("{NOISE} a <unk> b(2)", "[NOISE] a [unk] b"),
        ("'cause it is", "it is"),
    ],
)
def test_espnets_text(raw: str, text: str) -> None:
    assert espnet_text(raw) == text


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("tedlium2", {"train": "TEDLIUM_release2/train", "dev": "TEDLIUM_release2/dev"}),
        ("tedlium3", {"train": "TEDLIUM_release-3/data", "dev": "TEDLIUM_release-3/legacy/dev"}),
        ("tedlium3", {"train": "legacy/train", "dev": "legacy/dev"}),
    ],
)
def test_both_releases_are_found(name: str, folders: dict[str, str], make_talk: MakeTalk) -> None:
    for folder in folders.values():
        root = make_talk(folder)
    corpus = open_corpus(name, root)
    assert list(corpus.sets) == ["train", "dev", "test"]
    for set_name, folder in folders.items():
        utterances = list(corpus.utterances(set_name))
        assert [utterance.utt_id for utterance in utterances] == IDS
        assert {str(utterance.audio) for utterance in utterances} == {f"{root}/{folder}/sph/Talk_P.sph"}
    with pytest.raises(UserError, match=f"no {name} corpus: there is no .*test/stm"):
        list(corpus.utterances("test"))


def test_every_segment_is_prepared_and_cut_exactly(make_talk: MakeTalk, tmp_path: Path) -> None:
    corpus = open_corpus("tedlium2", make_talk("TEDLIUM_release2/dev"))
    assert prepare_set(corpus, "dev", tmp_path / "data").utterances == 5
    data = validate_data_dir(tmp_path / "data")
    assert list(data.tables["text"].values()) == ["the 'cause of it", "twice", "twice", "it's the end", ""]
    assert set(data.tables["utt2spk"].values()) == {"Talk_P"}
    assert data.tables["segments"][IDS[0]] == "Talk_P 0.29 1.15"
    format_audio(tmp_path / "data", tmp_path / "dump", RATE)
    talk = read_int16(corpus.root / "TEDLIUM_release2/dev/sph/Talk_P.sph")[0]
    for utt_id, first, last in ((IDS[0], 4640, 18400), (IDS[3], 40800, 49600)):
        np.testing.assert_array_equal(read_int16(tmp_path / f"dump/data/Talk_P/{utt_id}.flac")[0], talk[first:last])


def test_the_order_of_the_lines_does_not_matter(make_talk: MakeTalk) -> None:
    root = make_talk("TEDLIUM_release2/dev")
    in_order = list(open_corpus("tedlium2", root).utterances("dev"))
    make_talk("TEDLIUM_release2/dev", "".join(sorted(STM.splitlines(keepends=True), reverse=True)))
    assert list(open_corpus("tedlium2", root).utterances("dev")) == in_order


def test_espnets_rules_give_espnets_ids_and_text(make_talk: MakeTalk, tmp_path: Path) -> None:
    corpus = open_corpus("tedlium2", make_talk("TEDLIUM_release2/dev"), ["dev"], {"text_rules": "espnet"})
    prepare_set(corpus, "dev", tmp_path / "data")
    data = validate_data_dir(tmp_path / "data")
    # 0.29 * 100 and 1.15 * 100 are 28.999... and 114.999... in binary: ESPnet's ids are 10 ms off, our times are not.
    assert data.tables["text"] == {
        "Talk_P-0000028-0000114": "the'cause of [unk] it",
        "Talk_P-0000114-0000254": "twice",
        "Talk_P-0000254-0000310": "it's the end [SMACK]",
        "Talk_P-0000310-0000360": "[unk]",
    }
    assert data.tables["segments"]["Talk_P-0000028-0000114"] == "Talk_P 0.29 1.15"


def test_overlap_costs_a_training_segment_and_never_a_scored_one(make_talk: MakeTalk) -> None:
    stm = "Talk_P 1 Talk_P 0.0 2.0 <NA> a\nTalk_P 1 Talk_P 1.0 3.0 <NA> b\nTalk_P 1 Talk_P 2.9 3.5 <NA> c\n"
    for folder in ("train", "dev"):
        root = make_talk(f"TEDLIUM_release2/{folder}", stm)
    corpus = open_corpus("tedlium2", root)
    assert len(list(corpus.utterances("dev"))) == 3
    first, skip, third = corpus.utterances("train")
    assert isinstance(skip, Skip) and "Talk_P.stm:2: overlaps the segment before it" in skip.reason
    assert (first.text, third.text) == ("a", "c")


@pytest.mark.parametrize(("rules", "counts"), [("plain", [None, 507, 1155]), ("espnet", [None, None, None])])
def test_how_many_are_scored_is_known(rules: str, counts: list[int | None], tmp_path: Path) -> None:
    corpus = open_corpus("tedlium3", tmp_path, (), {"text_rules": rules})
    assert [corpus.distributed(name) for name in corpus.sets] == counts


def test_lm_text_follows_the_same_rules(make_talk: MakeTalk, tmp_path: Path) -> None:
    root = make_talk("TEDLIUM_release-3/legacy/dev")
    (root / "TEDLIUM_release-3" / "LM").mkdir()
    with gzip.open(root / "TEDLIUM_release-3" / "LM" / "news.en.gz", "wt") as stream:
        stream.write("<s> it 's late </s>\n\nthe 'cause </s>\n")
    assert write_lm_text(open_corpus("tedlium3", root), tmp_path / "lm") == 2
    assert (tmp_path / "lm").read_text() == "tedlium3_lm_00000001 it's late\ntedlium3_lm_00000002 the 'cause\n"


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"<s> late </s>\n" * 999)[:-20], b"no archive", gzip.compress(b"\xff\n")],
    ids=["cut short", "not zipped", "not UTF-8"],
)
def test_broken_lm_text_is_named(content: bytes, make_talk: MakeTalk, tmp_path: Path) -> None:
    root = make_talk("TEDLIUM_release-3/legacy/dev")
    (root / "TEDLIUM_release-3" / "LM").mkdir()
    (root / "TEDLIUM_release-3" / "LM" / "news.en.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"news\.en\.gz: not readable as zipped UTF-8 .*; unpack"):
        write_lm_text(open_corpus("tedlium3", root), tmp_path / "lm")
    assert not (tmp_path / "lm").exists()


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="text_rules=kaldi: choose from plain espnet"):
        open_corpus("tedlium3", tmp_path, (), {"text_rules": "kaldi"})
    with pytest.raises(UsageError, match="an4 has no 'text_rules'"):
        open_corpus("an4", tmp_path, (), {"text_rules": "plain"})
