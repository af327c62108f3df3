"""Which utterances survive, and why the others do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_ee.data.datadir import read_data_dir, validate_data_dir
from espnet_ee.data.length_filter import durations, filter_lengths
from espnet_ee.errors import UsageError, UserError


def test_survivors_are_counted_by_reason(data_dir: Path, tmp_path: Path) -> None:
    survivors = filter_lengths(data_dir, tmp_path / "out", 0.3, 0.9)
    assert survivors.kept == ["a-2"]
    assert survivors.dropped == {"too short": ["b-1"], "too long": ["a-1"], "without text": []}
    assert str(survivors) == "1 of 3 utterances kept (1 too short, 1 too long, 0 without text)"
    assert validate_data_dir(tmp_path / "out").utt_ids == ["a-2"]
    assert (tmp_path / "out" / "spk2utt").read_text() == "a a-2\n"


def test_limits_belong_to_the_range(data_dir: Path, tmp_path: Path) -> None:
    assert len(filter_lengths(data_dir, tmp_path / "out", 0.25, 1.0).kept) == 3


def test_empty_transcripts_are_dropped(data_dir: Path, tmp_path: Path) -> None:
    (data_dir / "text").write_text("a-1\na-2 NO\nb-1 GO\n")
    assert filter_lengths(data_dir, tmp_path / "out", 0.1, 30).dropped["without text"] == ["a-1"]


def test_counts_are_used_where_they_are(data_dir: Path) -> None:
    (data_dir / "utt2num_samples").write_text("a-1 8000\na-2 80\nb-1 16000\n")
    assert durations(read_data_dir(data_dir), 8000) == {"a-1": 1.0, "a-2": 0.01, "b-1": 2.0}


def test_frames_are_counted_in_the_frontends_hops(data_dir: Path) -> None:
    (data_dir / "feats.scp").write_text("a-1 x:1\na-2 x:2\nb-1 x:3\n")
    (data_dir / "utt2num_frames").write_text("a-1 100\na-2 50\nb-1 25\n")
    (data_dir / "frontend.yaml").write_text("frontend_conf: {fs: 16000, hop_length: 160}\n")
    assert durations(read_data_dir(data_dir), 16000) == {"a-1": 1.0, "a-2": 0.5, "b-1": 0.25}
    (data_dir / "frontend.yaml").write_text("frontend_conf:\n")
    with pytest.raises(UserError, match=r"frontend\.yaml: does not tell fs and hop_length"):
        durations(read_data_dir(data_dir), 16000)


def test_nothing_left_is_an_error(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 of 3 utterances kept"):
        filter_lengths(data_dir, tmp_path / "out", 5, 6)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("low", "high"), [(2, 1), (-1, 1), (1, 1), (float("nan"), 1)])
def test_impossible_ranges_are_refused(low: float, high: float, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--min_seconds"):
        filter_lengths(data_dir, tmp_path / "out", low, high)
