"""Tiny pre-trained models, random but saved in the real format: what the tests of ``early_exit_hf`` share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny

transformers = pytest.importorskip("transformers", reason="the extra ssl (transformers) is not installed")

FAMILIES = ("wav2vec2", "hubert", "wavlm")
KINDS = [(family, pre_norm) for family in FAMILIES for pre_norm in (False, True)]
every_kind = pytest.mark.parametrize(("family", "pre_norm"), KINDS, ids=lambda value: {True: "pre", False: "post"}.get(value))
BLOCKS = 4
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,  # kernels and strides are those of the large ones: 400 samples a frame, and 320 for each further one
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
# Nothing of a training is drawn at random.
STILL = {
    "layerdrop": 0.0,
    "dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
    "activation_dropout_rate": 0.0,
    "mask_time_prob": 0.0,
}
AUDIO = {"frontend": None, "frontend_conf": {}, "input_size": 1, "normalize": None, "specaug": None}
LENGTHS = (8000, 6543, 3333, 1000, 719, 400)


def library_model(family: str, pre_norm: bool = False, blocks: int = BLOCKS, seed: int = 0, **changes: Any) -> Any:
    """A model of transformers in evaluation mode, its parameters such that every part shows in the output."""
    torch.manual_seed(seed)
    config_class, model_class = {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
        "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
    }[family]
    kind = {"do_stable_layer_norm": pre_norm, "feat_extract_norm": "layer" if pre_norm else "group"}
    model = model_class(config_class(**{**SIZES, **kind, "num_hidden_layers": blocks, **changes})).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1 or "gru_rel_pos" in name or "rel_attn_embed" in name:
                value.add_(0.3 * torch.randn_like(value))
            elif "layers" in name and value.dim() == 2:
                value.copy_(0.2 * torch.randn_like(value))
    return model


def save(folder: Path, family: str, pre_norm: bool = False, normalize: bool = True, **changes: Any) -> str:
    """Writes such a model as transformers does; returns its folder's name."""
    library_model(family, pre_norm, **changes).save_pretrained(folder)
    preprocessor = {"do_normalize": normalize, "sampling_rate": 16000, "feature_extractor_type": "Wav2Vec2FeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return str(folder)


def encoder(pretrained: str, exit_layers: tuple[int, ...] = (1, 2, 3, BLOCKS), **changes: Any) -> Any:
    """Our encoder of a saved model, in evaluation mode."""
    from espnet_ee.encoder.hf import EarlyExitHfEncoder

    return EarlyExitHfEncoder(1, list(exit_layers), pretrained, **changes).eval()


def audio(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Utterances padded with noise, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(len(lengths), max(lengths), generator=generator) + 0.02, torch.tensor(lengths)


def settings(pretrained: str, **changes: Any) -> dict[str, Any]:
    """What of a training's configuration is another than :func:`tests.tiny.config`'s."""
    conf = {"pretrained": pretrained, "exit_layers": [2, BLOCKS], **STILL, **changes}
    return {"encoder": "early_exit_hf", "encoder_conf": conf, **AUDIO}


def model(pretrained: str, others: dict[str, Any] | None = None, **changes: Any) -> torch.nn.Module:
    """A recogniser with such an encoder, in evaluation mode; ``others``: changes outside of ``encoder_conf``."""
    from espnet_ee.store.build import build_model

    torch.manual_seed(0)
    return build_model(tiny.config(**{**settings(pretrained, **changes), **(others or {})}), "config.yaml").eval()


BATCH = (*audio((8000, 6000), seed=0), torch.tensor([[3, 4, 5], [5, 3, -1]]), torch.tensor([3, 2]))
