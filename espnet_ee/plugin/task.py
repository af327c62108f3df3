"""The ASR task with the early-exit classes in its tables."""

from __future__ import annotations

import argparse
import logging
from types import ModuleType
from typing import Any

from espnet2.tasks.asr import ASRTask
from espnet2.train.abs_espnet_model import AbsESPnetModel

from espnet_ee.plugin.register import register

# At import, so that a spawned child that unpickles the task by name has the tables filled, too.
register()


class EarlyExitASRTask(ASRTask):
    """``espnet2.tasks.asr.ASRTask``, able to build ``early_exit_*`` encoders and models."""

    @classmethod
    def build_model_from_file(cls, *arguments: Any, **keywords: Any) -> tuple[AbsESPnetModel, argparse.Namespace]:
        """As in ESPnet, whose ``Speech2Text`` comes here; warns of what it then gets wrong."""
        model, trained = super().build_model_from_file(*arguments, **keywords)
        if len(getattr(model, "exit_ctc", ())):
            logging.warning(
                "stock inference reads every exit with the last exit's head: the text of the last exit is right, "
                "encoder_interctc_layer*.txt is not; the other exits are read by espnet_ee.bin.asr_inference"
            )
        return model, trained


def adopt(command: ModuleType) -> None:
    """Gives a stock command our task in place of ESPnet's.

    ESPnet spawns the children of a distributed training with a method of the task: of ours, it brings this
    module along into every child, and with it the registration.

    Args:
        command: an imported module of ``espnet2.bin``.
    """
    if getattr(command, "ASRTask", None) is ASRTask:
        command.ASRTask = EarlyExitASRTask
