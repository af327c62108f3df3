"""The classes that a configuration can name, beside ESPnet's own. A new backbone is one class in ``encoder/`` and one line here.

Nothing here needs ESPnet's ASR task, whose import takes five times as long as torch's: who reads a model does without it.
"""

from __future__ import annotations

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.train.abs_espnet_model import AbsESPnetModel

from espnet_ee.encoder.espnet_blocks import BlockListEncoder
from espnet_ee.encoder.fast_conformer import EarlyExitFastConformerEncoder
from espnet_ee.encoder.hf import EarlyExitHfEncoder
from espnet_ee.encoder.splitformer import EarlyExitSplitformerEncoder
from espnet_ee.encoder.stock import (
    EarlyExitBranchformerEncoder,
    EarlyExitConformerEncoder,
    EarlyExitEBranchformerEncoder,
    EarlyExitMultiConvConformerEncoder,
    EarlyExitTransformerEncoder,
)
from espnet_ee.frontend.kaldi_fbank import KaldiFbank
from espnet_ee.model.early_exit import EarlyExitASRModel

PREFIX = "early_exit_"

ENCODERS: dict[str, type[AbsEncoder]] = {
    "early_exit_fast_conformer": EarlyExitFastConformerEncoder,
    "early_exit_splitformer": EarlyExitSplitformerEncoder,
    "early_exit_conformer": EarlyExitConformerEncoder,
    "early_exit_e_branchformer": EarlyExitEBranchformerEncoder,
    "early_exit_branchformer": EarlyExitBranchformerEncoder,
    "early_exit_transformer": EarlyExitTransformerEncoder,
    "early_exit_multiconv_conformer": EarlyExitMultiConvConformerEncoder,
    "early_exit_hf": EarlyExitHfEncoder,
}
FRONTENDS: dict[str, type[AbsFrontend]] = {"kaldi_fbank": KaldiFbank}
MODELS: dict[str, type[AbsESPnetModel]] = {"early_exit": EarlyExitASRModel}
# ESPnet's own encoders that ours compute segment by segment, by ESPnet's names.
STOCK_ENCODERS: dict[str, type[AbsEncoder]] = {
    name.removeprefix(PREFIX): cls.__bases__[-1] for name, cls in ENCODERS.items() if issubclass(cls, BlockListEncoder)
}
