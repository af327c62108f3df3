"""Loading a trained model: strictly, tensors only, from either ESPnet version."""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from humanfriendly import InvalidSize
from typeguard import TypeCheckError

from espnet_ee.errors import UsageError, UserError
from espnet_ee.host.compat import rename_keys
from espnet_ee.plugin.task import EarlyExitASRTask
from espnet_ee.store.interctc import from_interctc
from espnet_ee.store.train_config import check_encoder, read_train_config

# The mel filters follow from frontend_conf: a model trained on extracted features has none, and needs none to
# become a model on audio (or the other way round) by a change of its configuration.
_FROM_CONFIGURATION = "frontend.logmel.melmat"
# How ESPnet's constructors say that a setting or a statistics file is not as it should be.
_UNBUILDABLE = (
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    KeyError,
    RuntimeError,
    EOFError,
    MemoryError,
    ArithmeticError,
    zipfile.BadZipFile,
    TypeCheckError,
    InvalidSize,
)
# How torch says that the bytes of a checkpoint are not as it wrote them.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    OSError,
    zipfile.BadZipFile,
    MemoryError,
    LookupError,
    AssertionError,
    TypeError,
    AttributeError,
    OverflowError,
    struct.error,
)


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
    model = build_model(config, train_config)
    model.load_state_dict(fit_state(model, read_tensors(Path(model_file)), model_file))
    return move(model, device).eval()


def move(model: ESPnetASRModel, device: str) -> ESPnetASRModel:
    """Moves a model to a torch device.

    Raises:
        UsageError: torch knows no such device, or cannot use it here.
    """
    try:
        return model.to(device)
    except RuntimeError as error:
        raise UsageError(f"device {device}: {str(error).splitlines()[0]}; cpu always works") from None


def build_model(config: dict[str, Any], path: str | Path) -> ESPnetASRModel:
    """Builds an untrained model; whatever ESPnet finds wrong with the configuration is one line.

    Args:
        config: a training's configuration.
        path: where it was read from.
    """
    try:
        return EarlyExitASRTask.build_model(argparse.Namespace(**config))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{path}: {error.filename}: no such file; run from the recipe's folder") from None
    except _UNBUILDABLE as error:
        raise UserError(f"{path}: no model can be built from it: {error or type(error).__name__}") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a file of tensors; nothing else in it is unpickled, and no tensor is larger than what the file holds.

    Raises:
        UserError: missing, or anything else than the parameters of a model.
    """
    try:
        _check_declared_size(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the model first (stage 11)") from None
    except _UNREADABLE as error:
        # torch's own advice is to load the file all the same.
        said = (str(error).strip() or type(error).__name__).split("\n")[0].split("This file can still be loaded")[0].strip()
        advice = "give the parameters of an epoch or their average (*epoch.pth, *.ave.pth), not checkpoint.pth"
        raise UserError(f"{path}: not a file of tensors only, refused: {said}; {advice}") from None
    if isinstance(state, dict) and "pytorch-lightning_version" in state:  # espnet3 saves with Lightning
        state = state.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: not a model's parameters; give *.best.pth or *.ave.pth, not checkpoint.pth")
    for name, value in state.items():
        # A view may repeat one number a million times a million times.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} of shape {tuple(value.shape)} is larger than what is stored, refused")
    return state


def _check_declared_size(path: Path) -> None:
    """torch stores tensors uncompressed: an archive that would unpack to more than itself was made to fill memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise UserError(f"{path}: declares sizes beyond its own, refused")


def fit_state(model: ESPnetASRModel, state: dict[str, torch.Tensor], path: str | Path) -> dict[str, torch.Tensor]:
    """Renames a checkpoint's parameters to the running ESPnet's names and checks that they are the model's.

    Args:
        model: what the configuration describes.
        state: from :func:`read_tensors`.
        path: where it was read from.
    """
    wanted = model.state_dict()
    state = rename_keys(state, set(wanted))
    state.pop(_FROM_CONFIGURATION, None)
    if _FROM_CONFIGURATION in wanted:
        state[_FROM_CONFIGURATION] = wanted[_FROM_CONFIGURATION]
    check_keys(model, state, path)
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
