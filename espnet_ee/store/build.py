"""A configuration and tensors made into a model: every parameter fits, none is missing and none left over."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.errors import UserError
from espnet_ee.host.compat import rename_keys
from espnet_ee.plugin.mistakes import refuse_ignored
from espnet_ee.store.parts import are_known, assemble
from espnet_ee.values import is_number

# The mel filters follow from frontend_conf: a model trained on extracted features has none, and needs none to
# become a model on audio (or the other way round) by a change of its configuration.
_FROM_CONFIGURATION = "frontend.logmel.melmat"


def build_model(config: Mapping[str, Any], path: str | Path) -> ESPnetASRModel:
    """Builds an untrained model of a training's configuration, read from ``path``; what ESPnet finds wrong is said in one line."""
    args = argparse.Namespace(**config)
    try:
        if are_known(config):
            refuse_ignored(args)
            model = assemble(config)
        else:
            # Seconds of import: for the parts that only ESPnet's tables know.
            from espnet_ee.plugin.task import EarlyExitASRTask

            model = EarlyExitASRTask.build_model(args)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    vars(model)["token_type"] = config.get("token_type")  # how its tokens become text, which ESPnet's models do not know
    vars(model)["speech_volume"] = _volume(config, path)
    return model


def _volume(config: Mapping[str, Any], path: str | Path) -> float | None:
    """The peak to which ESPnet's preprocessor brings every utterance, of a training and of an inference; None: as they are."""
    value = config.get("speech_volume_normalize") if config.get("use_preprocessor", True) else None
    if value is not None and not (is_number(value, 0, 1e6) and value):
        raise UserError(f"{path}: speech_volume_normalize {value!r} is no peak of audio; give the one of the training, or null")
    return value


def fit_state(model: ESPnetASRModel, state: dict[str, torch.Tensor], path: str | Path) -> dict[str, torch.Tensor]:
    """Renames a checkpoint's parameters to the running ESPnet's names and checks that they are those of the model."""
    expected = model.state_dict()
    state = rename_keys(state, set(expected))
    state.pop(_FROM_CONFIGURATION, None)
    if _FROM_CONFIGURATION in expected:
        state[_FROM_CONFIGURATION] = expected[_FROM_CONFIGURATION]
    check_keys(expected, state, path)
    return state


def check_keys(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Raises a UserError that names the first parameter of ``state`` that is missing, left over or of another kind."""
    for name in expected:
        if name not in state:
            raise UserError(f"{path}: lacks {_describe(name)}; train it, or correct exit_layers, exit_heads and exit_decoders")
    for name, value in state.items():
        if name not in expected:
            raise UserError(f"{path}: has {_describe(name)}, which the configuration does not; give the matching config")
        own, other = _kind(value), _kind(expected[name])
        if own != other:
            raise UserError(f"{path}: {name} has shape {own}, the configuration asks for {other}")


def _kind(value: torch.Tensor) -> str:
    """Shape and whether it counts or measures; half precision is a matter of storing."""
    return f"{tuple(value.shape)}" + ("" if value.is_floating_point() else " of whole numbers")


def _describe(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "exit_ctc":
        return f"the head of exit {parts[1]} ({name})"
    if parts[0] == "exit_decoders":
        return f"the decoder of exit {parts[1]} ({name})"
    if parts[:2] == ["encoder", "exit_norms"]:
        return f"the norm of exit {parts[2]} ({name})"
    return name
