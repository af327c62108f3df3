"""Two decodings of one set, exit by exit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from espnet_ee.errors import UserError
from espnet_ee.kaldi import write_scp
from espnet_ee.policy.table import EvidenceTable, write_table
from espnet_ee.score.compare import compare_exits, comparison_page
from espnet_ee.score.grid import make_grid, read_grid
from tests.score.conftest import with_text


def test_utterances_that_one_side_could_not_decode_are_in_neither(grid) -> None:
    reason = {"c": "does not fit into memory"}
    whole, short = compare_exits(grid, grid), compare_exits(grid, grid.without(reason))
    assert [len(exit_.first.errors) for exit_ in short] == [5] * len(whole) == [len(exit_.second.errors) for exit_ in short]


def test_a_decoding_does_not_differ_from_itself(table, references) -> None:
    grid = make_grid("set", table, references)
    for at in compare_exits(grid, grid):
        assert at.first.wer == at.second.wer
        assert (at.difference.low, at.difference.high) == (0.0, 0.0)


def test_a_corrected_word_shows_at_its_exit_only(table, references) -> None:
    corrected = with_text(table, "a", 2, "the cat sat")
    before, after = make_grid("set", table, references), make_grid("set", corrected, references)
    at = {comparison.layer: comparison for comparison in compare_exits(before, after)}
    assert at[2].second.wer - at[2].first.wer == at[2].difference.points == pytest.approx(-100 * 2 / 14)
    assert at[2].difference.low < at[2].difference.points < at[2].difference.high <= 0
    assert at[4].second.wer == at[4].first.wer
    turned = {comparison.layer: comparison for comparison in compare_exits(after, before)}
    assert turned[2].difference.low == pytest.approx(-at[2].difference.high)


def test_only_common_exits_are_compared(table, references) -> None:
    last = EvidenceTable((6,), {utt: replace(one, rows=one.rows[-1:]) for utt, one in table.utterances.items()})
    grid, single = make_grid("set", table, references), make_grid("set", last, references)
    assert [at.layer for at in compare_exits(grid, single)] == [6]
    first = EvidenceTable((2,), {utt: replace(one, rows=one.rows[:1]) for utt, one in table.utterances.items()})
    with pytest.raises(UserError, match="none in common"):
        compare_exits(single, make_grid("set", first, references))


def test_other_utterances_or_references_are_refused(table, references) -> None:
    grid = make_grid("set", table, references)
    fewer = EvidenceTable(table.exit_layers, {utt: one for utt, one in table.utterances.items() if utt != "c"})
    with pytest.raises(UserError, match="no hypothesis for c"):
        compare_exits(grid, make_grid("set", fewer, {utt: text for utt, text in references.items() if utt != "c"}))
    with pytest.raises(UserError, match="other lengths"):
        compare_exits(grid, make_grid("set", table, {**references, "c": "hello you"}))


def test_the_page_has_a_table_for_every_set(table, references, tmp_path: Path) -> None:
    write_table(tmp_path / "x/set/evidence.tsv", table)
    write_table(tmp_path / "y/set/evidence.tsv", with_text(table, "a", 2, "the cat sat"))
    write_scp(tmp_path / "text", references)
    first, second = (read_grid(tmp_path / name / "set/evidence.tsv", tmp_path / "text") for name in "xy")
    page = comparison_page([(first, second), (first, first)], ("this", "that"), "A and B", ["as decoded"])
    assert page.count("## set (6 utterances)") == 2
    assert "|exit|WER % of this|WER % of that|difference|MMACs/s of this|MMACs/s of that|" in page
    assert "|4|28.57|28.57|+0.00 [0.00, 0.00]|11.69|11.69|" in page
    assert "|2|42.86|28.57|-14.29 [" in page
    assert page.count("|+0.00 [0.00, 0.00]|") == 5
    assert "# A and B\n\nas decoded\n" in page
