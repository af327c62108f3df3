"""The ASR task with the early-exit classes in its tables."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
from types import ModuleType
from typing import Any

import torch
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

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """As in ESPnet, which leaves its process group to the interpreter's end; here it is left while all is alive.

        A thread of gloo that lets go of its last tensor during that end takes the interpreter's lock and is torn down with
        it: "terminate called without an active exception", after a training that had succeeded.
        """
        if torch.distributed.is_available():
            # Left to DistributedDataParallel, this import would come after the group: a default of its functions for good.
            importlib.import_module("torch.distributed.nn.functional")
        super().main_worker(args)
        # Not after an error: then the others may still wait for this process within a collective.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gc.collect()  # the wrapped model, which holds the group, too
            torch.distributed.destroy_process_group()


def adopt(command: ModuleType) -> None:
    """Gives a stock command our task in place of ESPnet's.

    ESPnet spawns the children of a distributed training with a method of the task: of ours, it brings this
    module along into every child, and with it the registration.

    Args:
        command: an imported module of ``espnet2.bin``.
    """
    if getattr(command, "ASRTask", None) is ASRTask:
        command.ASRTask = EarlyExitASRTask
