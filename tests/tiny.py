"""Tiny models that the tests share: real ESPnet classes, a few thousand parameters."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import yaml

from espnet_ee.encoder.fast_blocks import MaskedBatchNorm
from espnet_ee.encoder.stock import (
    EarlyExitBranchformerEncoder,
    EarlyExitConformerEncoder,
    EarlyExitEBranchformerEncoder,
    EarlyExitMultiConvConformerEncoder,
    EarlyExitTransformerEncoder,
)

TOKENS = ["<blank>", "<unk>", "<space>", "A", "B", "C", "D", "<sos/eos>"]
CONFORMER: dict[str, Any] = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 24,
    "num_blocks": 4,
    "macaron_style": True,
    "cnn_module_kernel": 7,
}
STOCK_ONLY = {"rel_pos_type": "latest"}
_SIZES = {"output_size": 16, "attention_heads": 2, "num_blocks": 4}
_GATES = {"cgmlp_linear_units": 24, "cgmlp_conv_kernel": 7}
# Every backbone: our class and a tiny configuration. Tests that hold for all are parametrised over it.
BACKBONES: dict[str, tuple[type, dict[str, Any]]] = {
    "conformer": (EarlyExitConformerEncoder, CONFORMER),
    "transformer": (EarlyExitTransformerEncoder, {**_SIZES, "linear_units": 24}),
    "branchformer": (EarlyExitBranchformerEncoder, {**_SIZES, **_GATES}),
    "e_branchformer": (
        EarlyExitEBranchformerEncoder,
        {**_SIZES, **_GATES, "linear_units": 24, "use_ffn": True, "macaron_ffn": True},
    ),
    "multiconv_conformer": (
        EarlyExitMultiConvConformerEncoder,
        {
            **_SIZES,
            "linear_units": 24,
            "cgmlp_linear_units": 24,
            "multicgmlp_kernel_sizes": "3,7",
            "multicgmlp_merge_conv_kernel": 5,
        },
    ),
}

# What a training command needs in its configuration, beside the tokens and how to make batches.
TRAINING: dict[str, Any] = {
    "encoder": "early_exit_conformer",
    "encoder_conf": {**CONFORMER, "num_blocks": 2, "exit_layers": [1, 2], "exit_norm": "separate"},
    "model": "early_exit",
    "model_conf": {"ctc_weight": 1.0},
    "frontend_conf": {"n_fft": 512, "hop_length": 160},
    "optim": "adam",
    "optim_conf": {"lr": 1.0e-3},
    "best_model_criterion": [["valid", "loss", "min"]],
    "use_matplotlib": False,
    "use_tensorboard": False,
    "num_att_plot": 0,
}


def encoder(exit_layers: list[int], seed: int = 0, backbone: str = "conformer", **changes: Any) -> torch.nn.Module:
    """A tiny early-exit encoder in evaluation mode, its norms' parameters not trivial."""
    torch.manual_seed(seed)
    cls, conf = BACKBONES[backbone]
    made = cls(80, exit_layers=exit_layers, **{**conf, **changes})
    stir_batch_norm(made)
    return made.eval()


def stir_batch_norm(module: torch.nn.Module) -> None:
    """Gives every norm parameters and statistics that a padded frame would show up in."""
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm):
            torch.nn.init.normal_(part.bias, std=0.5)
        if type(part).__name__ == "ConvolutionalSpatialGatingUnit":
            torch.nn.init.normal_(part.conv.weight)  # untrained, it is nearly zero and lets nothing through
        if isinstance(part, (torch.nn.BatchNorm1d, MaskedBatchNorm)):
            torch.nn.init.normal_(part.running_mean)
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
            torch.nn.init.normal_(part.bias)


def assert_the_batch_does_not_matter(made: torch.nn.Module, lengths: tuple[int, ...] = (97, 64, 63, 40, 17)) -> None:
    """Every exit gives an utterance the same output and length in a batch, padded with noise, as alone."""
    torch.manual_seed(1)
    xs, ilens = torch.randn(len(lengths), max(lengths), 80), torch.tensor(lengths)
    with torch.no_grad():
        together = list(made.iter_exits(xs, ilens))
        for row, length in enumerate(lengths):
            alone = list(made.iter_exits(xs[row : row + 1, :length], ilens[row : row + 1]))
            for one, all_ in zip(alone, together, strict=True):
                assert one.olens[0] == all_.olens[row] == one.hs.size(1)
                torch.testing.assert_close(one.hs[0], all_.hs[row, : one.hs.size(1)], atol=1e-5, rtol=1e-4)


def config(**changes: Any) -> dict[str, Any]:
    """A training configuration as ESPnet's config.yaml holds it."""
    return {
        "token_list": TOKENS,
        "encoder": "early_exit_conformer",
        "encoder_conf": {**CONFORMER, "exit_layers": [1, 2, 4], "exit_norm": "separate"},
        "model": "early_exit",
        "model_conf": {"ctc_weight": 1.0},
        "frontend": "default",
        "frontend_conf": {"fs": "16k"},
        "specaug": None,
        "normalize": "utterance_mvn",
        "normalize_conf": {},
        "ctc_conf": {},
        "input_size": None,
        "init": None,
        "decoder": None,
        "decoder_conf": {},
        **changes,
    }


def attention(kind: str = "separate", **model_conf: Any) -> dict[str, Any]:
    """What gives every exit of :func:`config` an attention decoder."""
    terms = {"ctc": 0.3, "attention": 0.7}
    return {
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": 2, "linear_units": 24, "num_blocks": 2},
        "model_conf": {"ctc_weight": 0.3, "exit_terms": terms, "exit_decoders": kind, **model_conf},
    }


def model(seed: int = 0, **changes: Any) -> torch.nn.Module:
    """A tiny model built by ESPnet's task from :func:`config`, in evaluation mode."""
    from espnet_ee.plugin.task import EarlyExitASRTask

    torch.manual_seed(seed)
    made = EarlyExitASRTask.build_model(argparse.Namespace(**config(**changes)))
    stir_batch_norm(made)
    return made.eval()


def save(folder, made: torch.nn.Module, **changes: Any) -> tuple[str, str]:
    """Writes config.yaml and a checkpoint; returns their paths."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config(**changes)))
    torch.save(made.state_dict(), folder / "model.pth")
    return str(folder / "config.yaml"), str(folder / "model.pth")


def asr(made: torch.nn.Module, policy: Any = None) -> Any:
    """A recogniser of audio at 16 kHz around a model."""
    from espnet_ee.api import EarlyExitASR
    from espnet_ee.decode.torch_session import TorchSession

    return EarlyExitASR(TorchSession(made, 16000), 16000, policy)


def every_exit(made: torch.nn.Module, speech: list, nbest: int = 0) -> list:
    """Every utterance alone, all exits kept."""
    from espnet_ee.decode.loop import recognise
    from espnet_ee.decode.torch_session import TorchSession
    from espnet_ee.policy.decoding import DecodingConfig

    session = TorchSession(made)
    return [recognise(session, DecodingConfig(), [samples], True, nbest)[0] for samples in speech]


def evidence(layer: int, logits: torch.Tensor, olens: list[int], blank: int = 0) -> list:
    """All evidence of a batch (B, T, V), by the reduction of the CPU."""
    from espnet_ee.decode.torch_session import reduce_frames
    from espnet_ee.policy.frames import FIELDS, evidence_of

    return [evidence_of(layer, frames, blank, FIELDS) for frames in reduce_frames(logits, olens)]
