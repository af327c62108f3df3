"""The ASR task with the early-exit classes in its tables."""

from __future__ import annotations

from types import ModuleType

from espnet2.tasks.asr import ASRTask

from espnet_ee.plugin.register import register

# At import, so that a spawned child that unpickles the task by name has the tables filled, too.
register()


class EarlyExitASRTask(ASRTask):
    """``espnet2.tasks.asr.ASRTask``, able to build ``early_exit_*`` encoders and models."""


def adopt(command: ModuleType) -> None:
    """Gives a stock command our task in place of ESPnet's.

    ESPnet spawns the children of a distributed training with a method of the task: of ours, it brings this
    module along into every child, and with it the registration.

    Args:
        command: an imported module of ``espnet2.bin``.
    """
    if getattr(command, "ASRTask", None) is ASRTask:
        command.ASRTask = EarlyExitASRTask
