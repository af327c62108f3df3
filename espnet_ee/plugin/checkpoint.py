"""Loading a trained model: strictly, tensors only, from either ESPnet version."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.errors import UserError
from espnet_ee.plugin.compat import rename_keys
from espnet_ee.plugin.register import ENCODERS
from espnet_ee.plugin.stock import from_interctc
from espnet_ee.plugin.task import EarlyExitASRTask

# The mel filters follow from frontend_conf: a model trained on extracted features has none, and needs none to
# become a model on audio (or the other way round) by a change of its configuration.
_FROM_CONFIGURATION = "frontend.logmel.melmat"


def load_model(train_config: str | Path, model_file: str | Path, device: str = "cpu") -> ESPnetASRModel:
    """Builds the model that a training's ``config.yaml`` describes and loads its parameters.

    Unlike ``AbsTask.build_model_from_file`` nothing is unpickled but tensors, and no parameter may be
    missing or left over. A stock InterCTC model becomes an early-exit model with a shared head.

    Args:
        train_config: ``exp/.../config.yaml``.
        model_file: ``exp/.../*.pth``.
        device: torch device.

    Returns:
        The model in evaluation mode; its encoder is an :class:`EarlyExitEncoder`.

    Raises:
        UserError: a file is missing or no such file, the configuration names no early-exit encoder,
            or the checkpoint does not fit it.
    """
    config = from_interctc(read_train_config(train_config), train_config)
    check_encoder(config, train_config)
    try:
        model = EarlyExitASRTask.build_model(argparse.Namespace(**config))
    except FileNotFoundError as error:
        raise UserError(f"{train_config}: {error.filename}: no such file; run from the recipe's folder") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{train_config}: no model can be built from it: {error}") from error
    state = rename_keys(_read_tensors(Path(model_file)), set(model.state_dict()))
    state.pop(_FROM_CONFIGURATION, None)
    if _FROM_CONFIGURATION in model.state_dict():
        state[_FROM_CONFIGURATION] = model.state_dict()[_FROM_CONFIGURATION]
    check_keys(model, state, model_file)
    model.load_state_dict(state)
    return model.to(device).eval()


def check_encoder(config: dict[str, Any], path: str | Path) -> None:
    """Raises a UserError when the configuration's encoder has no exits, saying which have.

    Args:
        config: from :func:`read_train_config`.
        path: where it was read from.
    """
    encoder = config["encoder"]
    if encoder in ENCODERS:
        return
    if f"early_exit_{encoder}" in ENCODERS:
        raise UserError(f"{path}: encoder {encoder!r} has no exits: neither interctc_layer_idx nor early_exit_{encoder}")
    raise UserError(
        f"{path}: encoder {encoder!r} cannot be driven block by block and has no exits; use one of {', '.join(ENCODERS)}"
    )


def read_train_config(path: str | Path) -> dict[str, Any]:
    """Reads a training's ``config.yaml``.

    Raises:
        UserError: missing, not plain YAML, or without a key that every ESPnet training writes.
    """
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the model first (stage 11)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not plain YAML: {error}") from None
    for key in ("token_list", "encoder", "encoder_conf", "model"):
        if not isinstance(config, dict) or key not in config:
            raise UserError(f"{path}: lacks the key {key!r}; give the config.yaml that training wrote")
    return config


def sampling_rate(config: dict[str, Any]) -> int:
    """The rate in Hz that a training's frontend was made for (``frontend_conf: fs``, such as ``16k``).

    Args:
        config: from :func:`read_train_config`.
    """
    rate = str((config.get("frontend_conf") or {}).get("fs", 16000))
    try:
        return int(float(rate[:-1]) * 1000) if rate.endswith("k") else int(rate)
    except ValueError:
        raise UserError(f"frontend_conf: fs {rate!r} is no sampling rate; write 16000 or 16k") from None


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the model first (stage 11)") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: not a file of tensors only, refused: {first}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: not a model's parameters; give *.best.pth or *.ave.pth, not checkpoint.pth")
    return state


def check_keys(model: ESPnetASRModel, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Raises a UserError that names the first parameter of ``state`` that is missing, left over or of another shape."""
    wanted = model.state_dict()
    for name in wanted:
        if name not in state:
            raise UserError(f"{path}: lacks {_describe(name)}; train it, or correct exit_layers and exit_heads")
    for name, value in state.items():
        if name not in wanted:
            raise UserError(f"{path}: has {_describe(name)}, which the configuration does not; give the matching config")
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(value.shape)}, the configuration asks for {tuple(wanted[name].shape)}"
            )


def _describe(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "exit_ctc":
        return f"the head of exit {parts[1]} ({name})"
    if parts[:2] == ["encoder", "exit_norms"]:
        return f"the norm of exit {parts[2]} ({name})"
    return name
