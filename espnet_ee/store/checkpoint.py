"""Loading a trained model, of an experiment or a package: strictly, tensors only, from either ESPnet version."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.errors import UsageError, UserError, first_line
from espnet_ee.plugin.classes import MODELS
from espnet_ee.policy.packaged import DESCRIPTION
from espnet_ee.store.build import build_model, fit_state
from espnet_ee.store.interctc import from_interctc
from espnet_ee.store.tensors import read_tensors
from espnet_ee.store.train_config import check_encoder, complete, read_train_config
from espnet_ee.store.untrusted import check_package
from espnet_ee.text import READABLE

MODEL_FILE = "model.safetensors"  # of a package
# Of an experiment: the first pattern that fits exactly one file. ESPnet averages, and keeps the best epoch, by a criterion;
# in what its pack makes there is but one, called as what valid.loss.ave.pth is a link to.
_MODEL_FILES = (MODEL_FILE, "valid.loss.ave.pth", "*.ave.pth", "*.best.pth", "model.pth", "*.pth")
_NO_MODEL_FILES = ("checkpoint.pth",)  # of a training that is to go on


def experiment_files(folder: str | Path, model_file: str | Path | None = None) -> tuple[Path, Path]:
    """The two files that make a model, of an experiment's or a package's folder.

    Args:
        folder: has ``config.yaml``.
        model_file: in the folder or anywhere else; without it ``valid.loss.ave.pth``, which stage 12 decodes with, or the
            one average, best epoch or file of parameters that there is.

    Raises:
        UserError: a file is missing, or there are several to choose from; names those there are.
    """
    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        if (folder / "meta.yaml").is_file():  # what ESPnet's pack makes
            inside = [str(path.parent) for path in sorted(folder.glob("exp/*/config.yaml"))]
            raise UserError(
                f"{folder}: an archive of ESPnet's pack; give the folder of the model's config.yaml: {' or '.join(inside)}"
            )
        raise UserError(f"{config}: no such file; give the folder of an experiment (exp/asr_...) or of a package")
    if model_file is not None:
        for path in (folder / model_file, Path(model_file)):
            if path.is_file():
                return config, path
    else:
        for pattern in _MODEL_FILES:
            paths = [path for path in folder.glob(pattern) if path.name not in _NO_MODEL_FILES]
            if len(paths) == 1 and paths[0].is_file():
                return config, paths[0]
    there = sorted(path.name for path in folder.glob("*.pth") if path.is_file() and path.name not in _NO_MODEL_FILES)
    choice = f"name one of {', '.join(there)}" if there else "no training has finished an epoch there"
    raise UserError(f"{folder / (model_file or _MODEL_FILES[1])}: no such file; {choice}")


def load_model(train_config: str | Path, model_file: str | Path, device: str = "cpu") -> ESPnetASRModel:
    """The model alone, of :func:`load_trained`."""
    return load_trained(train_config, model_file, device)[0]


def load_trained(
    train_config: str | Path, model_file: str | Path, device: str = "cpu"
) -> tuple[ESPnetASRModel, dict[str, Any]]:
    """Builds the model that a training's or a package's ``config.yaml`` describes and loads its parameters.

    Unlike ``AbsTask.build_model_from_file`` nothing is unpickled but tensors, and no parameter may be
    missing or left over. A stock InterCTC model becomes an early-exit model with a shared head.

    Args:
        train_config: ``config.yaml``. Nothing of a package is trusted: see :mod:`espnet_ee.store.untrusted`.
        model_file: ``*.pth`` or ``model.safetensors``.
        device: torch device.

    Returns:
        The model in evaluation mode, whose encoder is a :class:`SegmentEncoder`, and the configuration it was built from.

    Raises:
        UserError: a file is missing or no such file, the configuration names no early-exit encoder,
            or the checkpoint does not fit it.
    """
    check_device(device)
    train_config, model_file = Path(train_config), Path(model_file)
    packaged = (train_config.parent / DESCRIPTION).exists()
    trained = complete(check_package(train_config, model_file), train_config) if packaged else read_train_config(train_config)
    config = from_interctc(trained)
    check_encoder(config, train_config)
    _check_readable(config, train_config)
    model = build_model(config, train_config)
    if getattr(model, "decoder", None) is not None and config["model"] not in MODELS:
        logging.warning(f"{train_config}: its decoder ({config['decoder']}) is not used: exits are read by CTC alone")
    model.load_state_dict(fit_state(model, read_tensors(model_file), model_file))
    return move(model, device).eval(), config


def _check_readable(config: Mapping[str, Any], path: Path) -> None:
    """Refuses what a training of ESPnet's may be and no model here."""
    if config.get("use_adapter"):
        raise UserError(
            f"{path}: use_adapter: parameters of adapters ({config.get('adapter')}) are none of an early-exit model; "
            "merge them into the model's own and set use_adapter: false"
        )
    if (config.get("token_type") or READABLE[0]) not in READABLE:
        raise UserError(
            f"{path}: token_type {config['token_type']}: its tokens become text by a tokeniser of another package; "
            f"train with {', '.join(READABLE)}"
        )


def check_device(device: str) -> None:
    """Raises UsageError for a device that torch does not know or cannot compute on here, before anything is loaded."""
    try:
        torch.ones(1, device=device).item()
    except Exception as error:  # each of torch's backends says it with another class
        raise _unusable(device, error) from None


def move(model: ESPnetASRModel, device: str) -> ESPnetASRModel:
    """Moves a model to a torch device. Raises UsageError if it does not fit there."""
    try:
        return model.to(device)
    except RuntimeError as error:
        raise _unusable(device, error) from None


def _unusable(device: str, error: Exception) -> UsageError:
    return UsageError(f"device {device}: {first_line(error)}; cpu always works")
