"""Puts the project's encoders, frontends and models into ESPnet's tables of choices.

ESPnet has no plug-in hook: the tables must be filled before arguments are parsed, in every process that parses them.
"""

from __future__ import annotations

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.tasks import asr
from espnet2.train.abs_espnet_model import AbsESPnetModel

from espnet_ee.host.compat import make_pad_masks_linear
from espnet_ee.plugin.classes import ENCODERS, FRONTENDS, MODELS


def register() -> None:
    """Makes ``encoder: early_exit_*``, ``frontend: kaldi_fbank`` and ``model: early_exit`` known to ESPnet's ASR task; its masks become linear."""
    make_pad_masks_linear()
    for choices, classes, base in (
        (asr.encoder_choices, ENCODERS, AbsEncoder),
        (asr.frontend_choices, FRONTENDS, AbsFrontend),
        (asr.model_choices, MODELS, AbsESPnetModel),
    ):
        for name, cls in classes.items():
            # ESPnet checks the type of its own entries only, when the table is made.
            if not issubclass(cls, base):
                raise TypeError(f"{name}: {cls.__name__} must subclass {base.__name__}")
            choices.classes[name] = cls
