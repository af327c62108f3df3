"""ESPnet's trainer, which looks after every epoch at whether its utterances could teach anything."""

from __future__ import annotations

import sys
from typing import Any

import torch
from espnet2.train.reporter import SubReporter
from espnet2.train.trainer import Trainer

from espnet_ee.encoder.base import trains_with_others
from espnet_ee.errors import UserError

REMEDY = "choose a lower subsampling or coarser units, or check that text and audio belong together"


class EarlyExitTrainer(Trainer):
    """As in ESPnet; an epoch that taught nothing is the last one."""

    @classmethod
    def train_one_epoch(cls, *arguments: Any, reporter: SubReporter, **keywords: Any) -> bool:
        """As in ESPnet.

        Raises:
            UserError: every utterance was too short for its text: a loss of 0, and nothing learned, is no success.
        """
        invalid = super().train_one_epoch(*arguments, reporter=reporter, **keywords)
        too_short, utterances = count_too_short(reporter)
        if too_short:
            lesson = f"{too_short} of {utterances} utterances taught nothing: they have fewer frames than tokens and repeats"
            if too_short == utterances:
                raise UserError(f"epoch {reporter.epoch}: {lesson}; {REMEDY}")
            if not trains_with_others() or torch.distributed.get_rank() == 0:
                print(f"warning: epoch {reporter.epoch}: {lesson}", file=sys.stderr, flush=True)
        return invalid


def count_too_short(reporter: SubReporter) -> tuple[int, int]:
    """Utterances of an epoch whose loss was infinite, and all of them; 0 of 0 where the model does not count them."""
    steps: Any = reporter.stats.get("ctc_too_short", ())
    return round(sum(float(step.value * step.weight) for step in steps)), round(sum(float(step.weight) for step in steps))
