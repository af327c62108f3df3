"""Two decodings of one set, exit by exit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from espnet_ee.bin import compare_exits as command
from espnet_ee.errors import UsageError, UserError
from espnet_ee.kaldi import write_scp
from espnet_ee.policy.table import EvidenceTable, write_table
from espnet_ee.score.compare import compare_exits
from espnet_ee.score.grid import make_grid


def changed(table: EvidenceTable, layer: int, text: str) -> EvidenceTable:
    """The same decoding with another text of one utterance at one exit."""
    utterance = table.utterances["a"]
    rows = tuple(replace(row, hypothesis=text) if row.evidence.layer == layer else row for row in utterance.rows)
    return EvidenceTable(table.exit_layers, {**table.utterances, "a": replace(utterance, rows=rows)})


def test_a_decoding_does_not_differ_from_itself(table, references) -> None:
    grid = make_grid("set", table, references)
    for at in compare_exits(grid, grid):
        assert at.one.wer == at.other.wer
        assert (at.difference.low, at.difference.high) == (0.0, 0.0)


def test_a_corrected_word_shows_at_its_exit_only(table, references) -> None:
    before, after = make_grid("set", table, references), make_grid("set", changed(table, 2, "THE CAT SAT"), references)
    found = {at.layer: at for at in compare_exits(before, after)}
    words = sum(len(text.split()) for text in references.values())
    assert found[2].other.wer - found[2].one.wer == pytest.approx(-100 * 2 / words)
    assert found[2].difference.low < 0
    assert found[2].difference.high <= 0
    assert found[4].other.wer == found[4].one.wer
    turned = {at.layer: at for at in compare_exits(after, before)}
    assert turned[2].difference.low == pytest.approx(-found[2].difference.high)


def test_only_common_exits_are_compared(table, references) -> None:
    last = EvidenceTable((6,), {utt: replace(one, rows=one.rows[-1:]) for utt, one in table.utterances.items()})
    grid, single = make_grid("set", table, references), make_grid("set", last, references)
    assert [at.layer for at in compare_exits(grid, single)] == [6]
    first = EvidenceTable((2,), {utt: replace(one, rows=one.rows[:1]) for utt, one in table.utterances.items()})
    with pytest.raises(UserError, match="none in common"):
        compare_exits(single, make_grid("set", first, references))


def test_combined_exits_pay_for_the_heads_below(table, references) -> None:
    grid = make_grid("set", table, references)
    seconds = sum(one.audio_seconds for one in table.utterances.values())
    heads = [3 * 10 * number / seconds for number in (0, 1, 2)]  # three utterances, 10 MACs a head
    found = compare_exits(grid, grid, other_passes_heads=True)
    assert [at.other.macs_per_second - at.one.macs_per_second for at in found] == pytest.approx(heads)


def test_other_utterances_or_references_are_refused(table, references) -> None:
    grid = make_grid("set", table, references)
    fewer = EvidenceTable(table.exit_layers, {utt: one for utt, one in table.utterances.items() if utt != "c"})
    with pytest.raises(UserError, match="no hypothesis for c"):
        compare_exits(grid, make_grid("set", fewer, {utt: references[utt] for utt in ("a", "b")}))
    with pytest.raises(UserError, match="other lengths"):
        compare_exits(grid, make_grid("set", table, {**references, "c": "HELLO YOU"}))


def test_the_command_writes_a_table_for_every_set(table, references, tmp_path: Path) -> None:
    for folder, one in (("x/set", table), ("y/set", changed(table, 2, "THE CAT SAT"))):
        (tmp_path / folder).mkdir(parents=True)
        write_table(tmp_path / folder / "evidence.tsv", one)
    write_scp(tmp_path / "text", references)
    one, other, text = (str(tmp_path / name) for name in ("x/set/evidence.tsv", "y/set/evidence.tsv", "text"))
    command.main(["--evidence", one, one, "--other", other, one, "--text", text, text, "--names", "this", "that",
                  "--output", str(tmp_path / "page.md")])  # fmt: skip
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.count("## set (3 utterances)") == 2
    assert "|exit|WER % of this|WER % of that|difference|" in page
    assert page.count("|+0.00 [0.00 to 0.00]|") == 5
    with pytest.raises(UsageError, match="same number"):
        command.main(["--evidence", one, "--other", one, "--text", text, text])
