"""A training's ``config.yaml``: read, checked, and rewritten for a model that is to take audio."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from espnet_ee.errors import UserError
from espnet_ee.files import is_file, read_lines, read_yaml, write_yaml
from espnet_ee.host.rate import parse_rate
from espnet_ee.plugin.classes import ENCODERS, PREFIX

# Files that a config.yaml names and a model cannot do without: (section, key).
_NEEDED_FILES = (("normalize_conf", "stats_file"), (None, "bpemodel"))


def check_encoder(config: dict[str, Any], path: str | Path) -> None:
    """Raises a UserError when the configuration's encoder has no exits, saying which have."""
    encoder = config["encoder"]
    if encoder in ENCODERS:
        return
    own = f"{PREFIX}{encoder}"
    if own in ENCODERS:
        raise UserError(f"{path}: encoder {encoder!r} has no exits: neither interctc_layer_idx nor {own}")
    raise UserError(
        f"{path}: encoder {encoder!r} cannot be driven block by block and has no exits; use one of {', '.join(ENCODERS)}"
    )


def read_train_config(path: str | Path) -> dict[str, Any]:
    """Reads a training's or a package's ``config.yaml``, with the files it names where they are found.

    Raises:
        UserError: missing, not plain YAML, or without a key that every ESPnet training writes.
    """
    path = Path(path)
    return complete(read_yaml(path, "give the config.yaml that training wrote, or that of a package"), path)


def complete(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A configuration, read from ``path``, with its tokens, and with the files it names where they are found (:func:`locate`).

    Raises:
        UserError: it lacks a key that every ESPnet training writes.
    """
    config = dict(config)
    for key in ("token_list", "encoder", "encoder_conf", "model"):
        if key not in config:
            raise UserError(f"{path}: lacks the key {key!r}; give the config.yaml that training wrote")
    for section, key in _NEEDED_FILES:
        holder = config if section is None else config.get(section) or {}
        if not isinstance(holder, dict) or not isinstance(holder.get(key) or "", str):
            raise UserError(f"{path}: {section or key} is not what training writes; give the config.yaml that it wrote")
    if isinstance(config["token_list"], str):  # espnet2 writes the tokens, espnet3 the name of their file
        config["token_list"] = [line.rstrip() for line in read_lines(locate(config["token_list"], path))]
    return map_files(config, lambda _, name: str(locate(name, path)))


def map_files(config: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """A configuration with other names, made by ``change`` of key and name, of the files that a model cannot do without."""
    changed = dict(config)
    for section, key in _NEEDED_FILES:
        holder = changed if section is None else dict(changed.get(section) or {})
        if holder.get(key):
            holder[key] = change(key, holder[key])
            if section is not None:
                changed[section] = holder
    return changed


def copy_needed_files(config: Mapping[str, Any], folder: Path, shown: Path) -> dict[str, Any]:
    """Copies the files that a configuration names into a folder, and names them there, the folder being called ``shown``."""

    def copy(key: str, name: str) -> str:
        source = Path(name)
        if not is_file(source):
            raise UserError(f"{key}: {source}: no such file; run from the recipe's folder")
        shutil.copyfile(source, folder / source.name)
        return str(shown / source.name)

    return map_files(config, copy)


def locate(name: str, path: Path) -> Path:
    """A file that a configuration names: beside it, from the nearest folder that holds it (the recipe's), or from the current one.

    The current folder comes last: it may be another recipe, where ESPnet's files have the same names.
    """
    places = [path.parent / name, *(folder / name for folder in path.absolute().parent.parents), Path(name)]
    return next((place for place in places if is_file(place)), Path(name))


def sampling_rate(config: dict[str, Any]) -> int:
    """The rate in Hz that a training's frontend was made for (``frontend_conf: fs``, such as ``16k``)."""
    conf = config.get("frontend_conf") or {}
    if not isinstance(conf, dict):
        raise UserError(f"frontend_conf: {conf!r}: write 'key: value' lines")
    rate = conf.get("fs", 16000)
    try:
        return parse_rate(rate)
    except ValueError:
        raise UserError(f"frontend_conf: fs {rate!r} is no sampling rate; write 16000 or 16k") from None


def write_raw_audio_config(config: Path, frontend: Path, out: Path) -> None:
    """Writes the training configuration of a feature model as that of the same model with its frontend in front.

    Args:
        config: ``config.yaml`` of a model trained with ``feats_type: extracted``; what is written goes with the same checkpoint.
        frontend: ``frontend.yaml`` of the features it was trained on.
        out: the configuration to write.

    Raises:
        UserError: a file is missing or no mapping, or the model takes audio already, or other features.
    """
    trained, computed = read_yaml(config, "train the model first"), read_yaml(frontend, "it lies beside the features (stage 3)")
    if trained.get("input_size") is None:
        raise UserError(f"{config}: input_size is not set: this model takes audio already; nothing is to be done")
    conf = computed.get("frontend_conf") or {}
    if not isinstance(conf, dict):
        raise UserError(f"{frontend}: frontend_conf must be 'key: value' lines; extract the features again (stage 3)")
    mels = conf.get("n_mels")
    if mels != trained["input_size"]:
        raise UserError(f"{frontend}: makes {mels} features a frame, the model of {config} takes {trained['input_size']}")
    changed = {**trained, "input_size": None, "frontend": computed.get("frontend") or "default", "frontend_conf": conf}
    write_yaml(out, changed)
