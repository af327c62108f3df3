"""Puts the project's encoders, frontends and models into ESPnet's tables of choices.

ESPnet has no plug-in hook: the tables must be filled before arguments are parsed, in every process
that parses them. A new backbone is one class in ``encoder/`` and one line in ``ENCODERS``.
"""

from __future__ import annotations

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.tasks import asr
from espnet2.train.abs_espnet_model import AbsESPnetModel

from espnet_ee.encoder.branchformer import EarlyExitBranchformerEncoder
from espnet_ee.encoder.conformer import EarlyExitConformerEncoder
from espnet_ee.encoder.e_branchformer import EarlyExitEBranchformerEncoder
from espnet_ee.encoder.fast_conformer import EarlyExitFastConformerEncoder
from espnet_ee.encoder.kaldi_fbank import KaldiFbank
from espnet_ee.encoder.multiconv_conformer import EarlyExitMultiConvConformerEncoder
from espnet_ee.encoder.splitformer import EarlyExitSplitformerEncoder
from espnet_ee.encoder.transformer import EarlyExitTransformerEncoder
from espnet_ee.host.compat import make_pad_masks_linear
from espnet_ee.model.early_exit import EarlyExitASRModel

ENCODERS: dict[str, type[AbsEncoder]] = {
    "early_exit_fast_conformer": EarlyExitFastConformerEncoder,
    "early_exit_splitformer": EarlyExitSplitformerEncoder,
    "early_exit_conformer": EarlyExitConformerEncoder,
    "early_exit_e_branchformer": EarlyExitEBranchformerEncoder,
    "early_exit_branchformer": EarlyExitBranchformerEncoder,
    "early_exit_transformer": EarlyExitTransformerEncoder,
    "early_exit_multiconv_conformer": EarlyExitMultiConvConformerEncoder,
}
FRONTENDS: dict[str, type[AbsFrontend]] = {"kaldi_fbank": KaldiFbank}
MODELS: dict[str, type[AbsESPnetModel]] = {"early_exit": EarlyExitASRModel}


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
