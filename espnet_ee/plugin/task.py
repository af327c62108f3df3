"""The ASR task with the early-exit classes in its tables."""

from __future__ import annotations

from espnet2.tasks.asr import ASRTask

from espnet_ee.plugin.register import register

# At import, so that a spawned child that unpickles the task by name has the tables filled, too.
register()


class EarlyExitASRTask(ASRTask):
    """``espnet2.tasks.asr.ASRTask``, able to build ``early_exit_*`` encoders and models."""
