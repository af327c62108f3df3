"""The families of pre-trained speech encoders that transformers has: what describes one of them, and where its weights are.

A model is made from a small table of settings alone, whatever it was read from: the table goes into a training's config.yaml
and into packages, so that who loads those needs neither the folder nor the hub that the weights once came from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel
from transformers.activations import ACT2FN
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices
from transformers.utils import logging

from espnet_ee.encoder.hf_wavlm import FusedWavLMAttention
from espnet_ee.errors import UserError, first_line
from espnet_ee.hub import model_folder
from espnet_ee.values import is_whole

FAMILIES: dict[str, tuple[Any, Any]] = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
}
WEIGHTS = "model*.safetensors"
FILES = ("config.json", "preprocessor_config.json", WEIGHTS, "model.safetensors.index.json")
MASK_EMBEDDING = "masked_spec_embed"  # checkpoints of trainings without masks lack it
MOST = 1 << 16  # of any size; of layers see below: each is an object before a tensor's shape is looked at
MOST_LAYERS = 256


def _is_size(value: Any) -> bool:
    return is_whole(value, most=MOST)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 16 and all(map(_is_size, value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_activation(value: Any) -> bool:
    return isinstance(value, str) and value in ACT2FN


_SETTINGS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size"), _is_size),
    **dict.fromkeys(("num_conv_pos_embeddings", "num_conv_pos_embedding_groups"), _is_size),
    "num_hidden_layers": lambda value: is_whole(value, most=MOST_LAYERS),
    **dict.fromkeys(("conv_dim", "conv_kernel", "conv_stride"), _are_sizes),
    **dict.fromkeys(("conv_bias", "do_stable_layer_norm"), _is_flag),
    **dict.fromkeys(("hidden_act", "feat_extract_activation"), _is_activation),
    "feat_extract_norm": lambda value: value in ("group", "layer"),
    "layer_norm_eps": lambda value: isinstance(value, float) and 0.0 < value < 1.0,
}
_OF_FAMILY: dict[str, dict[str, Callable[[Any], bool]]] = {
    "wav2vec2": {},
    "hubert": dict.fromkeys(("feat_proj_layer_norm", "conv_pos_batch_norm"), _is_flag),
    "wavlm": dict.fromkeys(("num_buckets", "max_bucket_distance"), _is_size),
}
DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout")
NORMALIZE = "do_normalize"  # of preprocessor_config.json: whether every utterance gets mean 0 and variance 1


def check_architecture(architecture: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the table that describes a model when it does; it may come from a stranger.

    Args:
        architecture: ``model_type`` and the settings of transformers' configuration that say how the model computes.
        where: it was read, for messages.

    Raises:
        UserError: another family, a key that is missing or too many, or a value of no sense.
    """
    family = architecture.get("model_type") if isinstance(architecture, Mapping) else None
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"{where}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
    known = {**_SETTINGS, **_OF_FAMILY[family], NORMALIZE: _is_flag}
    for key in architecture:
        if key != "model_type" and key not in known:
            raise UserError(f"{where}: {key} is no setting of a {family} model here")
    for key, is_right in known.items():
        if key not in architecture:
            raise UserError(f"{where}: lacks {key}")
        if not is_right(architecture[key]):
            raise UserError(f"{where}: {key} {architecture[key]!r} cannot be")
    if len({len(architecture[key]) for key in ("conv_dim", "conv_kernel", "conv_stride")}) > 1:
        raise UserError(f"{where}: conv_dim, conv_kernel and conv_stride are of different lengths")
    for key in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if architecture["hidden_size"] % architecture[key]:
            raise UserError(f"{where}: hidden_size {architecture['hidden_size']} is no multiple of {key} {architecture[key]}")
    return dict(architecture)


def read_pretrained(source: str, rates: Mapping[str, float]) -> tuple[dict[str, Any], Any]:
    """The architecture and the model with its weights, of a folder or of the hub.

    Args:
        source: a folder with config.json and model.safetensors, which is never looked for elsewhere, or a name like
            ``facebook/wav2vec2-base``; with HF_HUB_OFFLINE=1 only what was downloaded before is taken.
        rates: settings of training, by transformers' names; see :func:`build_model`.

    Raises:
        UserError: there is no such model, it is of another family or kind, damaged, or has no safetensors.
    """
    folder = model_folder(source, FILES)
    architecture = _read_architecture(folder)
    if not any(folder.glob(WEIGHTS)):
        raise UserError(_without_safetensors(source, folder))
    config, model_class = _configuration(architecture, rates), FAMILIES[architecture["model_type"]][1]
    with _said_in_one_line(str(folder)):
        model, told = model_class.from_pretrained(
            folder, config=config, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    missing = sorted(set(told["missing_keys"]) - {MASK_EMBEDDING})
    if missing:
        raise UserError(
            f"{folder}: its weights lack {missing[0]} ({len(missing)} in all): no {architecture['model_type']} model"
        )
    return architecture, model.float()


def build_model(architecture: Mapping[str, Any], rates: Mapping[str, float]) -> Any:
    """A model without trained weights.

    Args:
        architecture: checked.
        rates: ``hidden_dropout`` and the like, which leave no trace in the parameters (but for ``mask_time_prob``: 0.0 means
            that there is no ``masked_spec_embed``).
    """
    config, model_class = _configuration(architecture, rates), FAMILIES[architecture["model_type"]][1]
    with _said_in_one_line("encoder_conf: architecture"):
        return model_class(config)


def fuse_attention(layers: torch.nn.ModuleList) -> None:
    """Lets WavLM's blocks compute :class:`FusedWavLMAttention` on the parameters they have; others have a fused one."""
    for layer in layers:
        layer.attention.__class__ = FusedWavLMAttention


def _configuration(architecture: Mapping[str, Any], rates: Mapping[str, float]) -> Any:
    settings = {key: value for key, value in architecture.items() if key not in ("model_type", NORMALIZE)}
    with _said_in_one_line("encoder_conf: architecture"):
        # What else a training draws is the encoder's own.
        return FAMILIES[architecture["model_type"]][0](**settings, **rates, feat_proj_dropout=0.0, mask_feature_prob=0.0)


def _read_architecture(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    content = _read_json(path)
    if content is None:
        raise UserError(f"{path}: no such file; give the folder of a model that transformers saved")
    family = content.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"{path}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
    if content.get("adapter_attn_dim") is not None:
        raise UserError(f"{path}: adapter_attn_dim: blocks with adapters (MMS) are none that this encoder computes")
    with _said_in_one_line(str(path)):
        config = FAMILIES[family][0].from_dict(content)
    keys = (*_SETTINGS, *_OF_FAMILY[family])
    table = {"model_type": family, **{key: getattr(config, key, None) for key in keys}}
    table = {key: list(value) if isinstance(value, tuple) else value for key, value in table.items()}
    # Without a word about it: only front ends with group norm, which undoes it, were trained on samples as they are.
    table[NORMALIZE] = (_read_json(folder / "preprocessor_config.json") or {}).get(NORMALIZE, True)
    return check_architecture(table, str(path))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no table of settings")
    return content


def _without_safetensors(source: str, folder: Path) -> str:
    has = "only pytorch_model.bin, a pickle" if (folder / "pytorch_model.bin").exists() else "no model.safetensors"
    return (
        f'{source}: has {has}; convert it once, where you trust it: python -c "from transformers import AutoModel; '
        f"AutoModel.from_pretrained('{source}').save_pretrained('FOLDER')\", and give FOLDER"
    )


def draw_masks(real: torch.Tensor, share: float, length: int, least: int) -> torch.Tensor:
    """The library's random masks: True where a mask is (B, T), on the CPU.

    Args:
        real: True on what may be masked (B, T).
        share: of it that the masks would cover if none overlapped.
        length: of a mask.
        least: masks of each row, if there is room.
    """
    if not share or real.size(1) < length:  # the library refuses rows shorter than a mask
        return torch.zeros(real.shape, dtype=torch.bool)
    shape = (real.size(0), real.size(1))
    return torch.from_numpy(_compute_mask_indices(shape, share, length, attention_mask=real.cpu().long(), min_masks=least))


@contextmanager
def _said_in_one_line(what: str) -> Iterator[None]:
    """Turns whatever transformers says of files and settings into a UserError; it prints no warnings and no progress."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: transformers cannot make a model of it: {first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
