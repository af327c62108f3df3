"""An epoch in which utterances teach nothing says how many; one in which none does ends the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer

from espnet_ee.errors import UserError
from espnet_ee.plugin.trainer import EarlyExitTrainer


def run_epoch(monkeypatch: pytest.MonkeyPatch, *steps: tuple[float, int], name: str = "ctc_too_short") -> bool:
    """One epoch in which ESPnet's trainer reports a share of a number of utterances at each step."""

    def stock(cls: type, model: Any, *, reporter: Any) -> bool:
        for share, utterances in steps:
            reporter.register({name: torch.tensor(share), "loss": torch.tensor(1.0)}, torch.tensor(utterances))
            reporter.next()
        return False

    monkeypatch.setattr(Trainer, "train_one_epoch", classmethod(stock))
    with Reporter(1).observe("train") as reporter:
        return EarlyExitTrainer.train_one_epoch(None, reporter=reporter)


def test_an_epoch_that_taught_nothing_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"epoch 1: 5 of 5 utterances taught nothing: .*; choose a lower subsampling"):
        run_epoch(monkeypatch, (1.0, 3), (1.0, 2))


def test_some_that_teach_nothing_are_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_epoch(monkeypatch, (1 / 3, 3), (1.0, 2), (0.0, 7)) is False
    assert capsys.readouterr().err.startswith("warning: epoch 1: 3 of 12 utterances taught nothing: ")


@pytest.mark.parametrize("name", ["ctc_too_short", "acc"])
def test_nothing_to_say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str) -> None:
    run_epoch(monkeypatch, (0.0 if name == "ctc_too_short" else 1.0, 4), name=name)
    assert not capsys.readouterr().err
