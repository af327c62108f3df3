"""The evidence table is read back bit by bit, and broken ones are named with their line."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.errors import UserError
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.table import (
    NEEDED,
    EvidenceRow,
    EvidenceTable,
    Utterance,
    macs_of_stop,
    parse_row,
    read_table,
    write_table,
)


def row(layer: int, entropy: float = 0.1, text: str = "A B") -> EvidenceRow:
    return EvidenceRow(ExitEvidence(layer, (3, 1, 4), entropy, 0.9, 0.5, -2.5, 50), text, 1000 * layer, 7 + layer)


def table(**texts: str) -> EvidenceTable:
    return EvidenceTable((2, 4), {utt: Utterance(1.25, (row(2, text=t), row(4, text=t))) for utt, t in texts.items()})


def test_a_table_survives_the_file(tmp_path: Path) -> None:
    made = table(b="", a="Ünïcode \\n tab\there\nline two", c="x")
    write_table(tmp_path / "evidence.tsv", made)
    read = read_table(tmp_path / "evidence.tsv")
    assert {utt: repr(read.utterances[utt]) for utt in "abc"} == {utt: repr(made.utterances[utt]) for utt in "abc"}  # NaN
    assert list(read.utterances) == ["a", "b", "c"]
    assert read.utterances["a"].evidence[1].tokens == (3, 1, 4)


def test_a_table_that_windows_has_saved_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "evidence.tsv"
    write_table(path, table(a="É", b="x"))
    before = read_table(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert repr(read_table(path)) == repr(before)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_table(tmp_path / "one", table(b="x", a="y"))
    write_table(tmp_path / "two", table(a="y", b="x"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@settings(deadline=None, max_examples=50)
@given(
    number=st.floats(min_value=0, allow_infinity=False) | st.just(math.nan),
    text=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_every_float_and_text_is_exact(tmp_path_factory: pytest.TempPathFactory, number: float, text: str) -> None:
    path = tmp_path_factory.mktemp("table") / "evidence.tsv"
    write_table(path, EvidenceTable((2,), {"u": Utterance(1.0, (row(2, number, text),))}))
    back = read_table(path).utterances["u"].rows[0]
    assert back.hypothesis == text
    if math.isnan(number):
        assert math.isnan(back.evidence.entropy)
    else:
        assert struct.pack("d", back.evidence.entropy) == struct.pack("d", number)


@given(st.lists(st.tuples(*[st.integers(0, 10**9)] * 3), min_size=1, max_size=6), st.data(), st.booleans(), st.booleans())
def test_macs_of_stop_counts_what_was_computed(costs: list[tuple[int, int, int]], data, heads: bool, searches: bool) -> None:
    rows = [EvidenceRow(ExitEvidence(1), "", encoder, head, (), decoder) for encoder, head, decoder in costs]
    index = data.draw(st.integers(0, len(costs) - 1))
    spent = sum(costs[index])
    for _, head, decoder in costs[:index]:
        spent += head * heads + decoder * searches
    assert macs_of_stop(rows, index, heads, searches) == spent


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=40)
@given(st.lists(finite, max_size=4), st.lists(st.floats(0, 1) | st.just(math.nan), min_size=2, max_size=2))
def test_what_policies_read_survives_the_file(tmp_path_factory, scores: list[float], extra: list[float]) -> None:
    extra = [math.nan if math.isnan(x) else x for x in extra]
    plain = ExitEvidence(2, (), 0.1, 0.9, 0.5, -1.0, 5, tuple(scores), *extra)
    path = tmp_path_factory.mktemp("t") / "evidence.tsv"
    clusters = replace(plain, cluster_entropy=extra[0])
    searched = replace(clusters, decoder_log_prob=-extra[1], decoder_scores=tuple(scores))
    for evidence, macs, columns in ((plain, 0, ""), (clusters, 0, "cluster_entropy"), (searched, 5, "decoder_macs")):
        # Of another utterance nothing of it is known.
        rows = {"u": evidence, "v": ExitEvidence(2)}
        made = EvidenceTable(
            (2,),
            {utt: Utterance(1.0, (EvidenceRow(own, "", 1, 1, (), macs * (own is evidence)),)) for utt, own in rows.items()},
        )
        write_table(path, made)
        assert repr(read_table(path)) == repr(made)
        assert columns in path.read_text().split("\n")[0] or math.isnan(extra[0])


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        *((name, "-0.00001 1.00001", "-0.001 1.001 nan") for name in ("confidence", "blank_share", "spoken_confidence")),
        ("token_confidence", "-0.00001 1.00001", "-0.001 1.001 inf"),
        *((name, "0.0 1e300", "-1e-9 inf nan") for name in ("entropy", "cluster_entropy")),
        ("score", "-1e300 1e300", "-inf inf nan"),
        ("decoder_log_prob", "-1e300 0.0", "1e-9 -inf nan"),
    ],
)
def test_what_no_decoding_gives_is_refused(name: str, good: str, bad: str) -> None:
    cells = {"utt_id": "u", "exit_layer": "1", "frames": "0", "tokens": "", "encoder_macs": "0", "head_macs": "0"}
    for value in good.split():
        assert getattr(parse_row({**cells, name: value}, "").evidence, name) == float(value)
    for value in bad.split():
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            parse_row({**cells, name: value}, "")


def test_a_table_from_before_the_later_evidence_is_read(tmp_path: Path) -> None:
    path = tmp_path / "evidence.tsv"
    write_table(path, table(u="A B"))
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [lines[0].index(name) for name in (*NEEDED, "entropy")]
    path.write_text("".join("\t".join(line[i] for i in kept) + "\n" for line in lines), encoding="utf-8")
    read = read_table(path)
    expected = tuple(ExitEvidence(layer, (3, 1, 4), 0.1, frames=50) for layer in (2, 4))
    assert repr(read.utterances["u"].evidence) == repr(expected)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("utt_id", "utt", "evidence.tsv:1: .*utt_id"),
        ("\tscore\t", "\tscared\t", "evidence.tsv:1: .*scared"),
        ("\tscore\t", "\tentropy\t", "evidence.tsv:1: .*entropy"),
        ("\t50\t", "\tfifty\t", r"evidence.tsv:2: .*fifty.*decode with --every_exit again"),
        ("A B\t\n", "A B\t", r"evidence.tsv:3: the last line is cut off"),
        ("u\t4\t", "u\t6\t4\t", r"evidence.tsv:3: 17 fields, expected 16"),
        ("u\t4\t50\t1.25", "u\t4\t50\t1.5", r"evidence.tsv:3: other audio_seconds of u"),
        ("u\t4\t", "v\t4\t", r"has rows of exits \[(2|4)\].*2 4"),
        ("\t0.1\t", "\tnan\t", r"evidence.tsv:3: entropy is nan"),
        ("\t0.1\t", "\t-1.0\t", r"evidence.tsv:3: entropy is -1.0"),
        ("\t0.1\t", "\tinf\t", r"evidence.tsv:3: entropy is inf"),
        ("\t0.9\t", "\t7.0\t", r"evidence.tsv:3: confidence is 7.0"),
        ("\t4000\t", "\t-4000\t", r"evidence.tsv:3: .*a count below 0"),
        ("u\t4\t", "u\t0\t", r"evidence.tsv:3: an exit layer below 1"),
        ("u\t4\t", "\t4\t", r"evidence.tsv:3: no utt_id"),
        ("u\t4\t", "u\t1\t", r"u has rows of exits \[2, 1\]"),
    ],
)
def test_a_broken_table_is_named_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "evidence.tsv"
    write_table(path, table(u="A B"))
    text = path.read_text(encoding="utf-8")
    assert old in text
    head, _, tail = text.rpartition(old) if old not in ("utt_id", "\t50\t", "\tscore\t") else text.partition(old)
    path.write_text(head + new + tail, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_table(path)


def test_a_missing_or_empty_table_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; decode with --every_exit"):
        read_table(tmp_path / "none.tsv")
    write_table(tmp_path / "empty.tsv", EvidenceTable((2,), {}))
    with pytest.raises(UserError, match="no utterance"):
        read_table(tmp_path / "empty.tsv")
