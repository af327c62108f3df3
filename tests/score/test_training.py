"""Losses by exit out of ESPnet's training log."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_ee.score.training import ROWS, read_epochs, training_table


def line(epoch: int, loss: float) -> str:
    """As ESPnet's trainer logs it, both versions."""
    return (
        f"[host] 2026-11-21 04:23:38,617 (trainer:394) INFO: {epoch}epoch results: [train] iter_time=0.003, "
        f"loss_exit02={loss}, loss_exit12={loss / 2}, ctc_too_short=0.000e+00, loss={1.5 * loss}, "
        f"time=1 minute and 50.2 seconds, total_count=2580, [valid] loss_exit02={loss + 1}, loss_exit12=nan, "
        f"cer_exit02=0.229, loss=78.351, time=1.99 seconds, total_count=110\n"
    )


def test_epochs_of_a_resumed_training_are_read_from_all_logs(tmp_path: Path) -> None:
    (tmp_path / "train.1.log").write_text("noise\n" + line(1, 300.0) + line(2, 9.0))
    (tmp_path / "train.2.log").write_text(line(2, 100.0))
    (tmp_path / "train.10.log").write_text(line(3, 50.0))
    (tmp_path / "train.log").write_text(line(4, 1.5e-1))
    epochs = read_epochs(tmp_path)
    assert list(epochs) == [1, 2, 3, 4]
    assert epochs[2].train == {2: 100.0, 12: 50.0}, "the later log tells what the model went through"
    assert epochs[4].valid[2] == pytest.approx(1.15)
    table = training_table(epochs)
    assert table[0] == "|epoch|exit 2|exit 12|"
    assert table[2] == "|1|300.0 / 301.0|150.0 / nan|"
    assert len(table) == 2 + 4


def test_long_trainings_are_thinned_with_both_ends(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("".join(line(epoch, 100 / epoch) for epoch in range(1, 101)))
    table = training_table(read_epochs(tmp_path))
    assert len(table) == 2 + ROWS
    assert table[2].startswith("|1|") and table[-1].startswith("|100|")


def test_without_losses_by_exit_there_is_no_table(tmp_path: Path) -> None:
    assert training_table(read_epochs(tmp_path)) == []
    (tmp_path / "train.log").write_text("1epoch results: [train] loss=3, [valid] loss=4\n")
    assert read_epochs(tmp_path) == {}
