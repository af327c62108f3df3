"""Puts the project's encoders, frontends and models into ESPnet's tables of choices.

ESPnet has no plug-in hook: the tables must be filled before arguments are parsed, in every process that parses them.
"""

from __future__ import annotations

from espnet2.tasks import asr

from espnet_ee.host.compat import make_pad_masks_linear
from espnet_ee.plugin.classes import ENCODERS, FRONTENDS, MODELS


def register() -> None:
    """Makes ``encoder: early_exit_*``, ``frontend: kaldi_fbank`` and ``model: early_exit`` known to ESPnet's ASR task; its masks become linear."""
    make_pad_masks_linear()
    asr.encoder_choices.classes.update(ENCODERS)
    asr.frontend_choices.classes.update(FRONTENDS)
    asr.model_choices.classes.update(MODELS)
