"""Packages: a trained model as one folder that others can load, and loading one from a stranger.

A package is flat: ``config.yaml`` (with the token list), ``model.safetensors``, a ``decode_NAME.yaml`` for each decoding
configuration, ``package.yaml`` (format, default), ``README.md`` (the model card), and where there are any the BPE model, the
normalisation's statistics, the language models and lexicons of the configurations (``lm.arpa``, ``lexicon.txt``) and ``exits.csv``; and of an exported model the folder ``onnx/``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee import __version__
from espnet_ee.errors import UsageError, UserError
from espnet_ee.exported import FOLDER as ONNX
from espnet_ee.files import atomic_dir, file_digest, refuse_other_folder, write_yaml
from espnet_ee.host.compat import espnet_version
from espnet_ee.hub import model_folder
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.packaged import DESCRIPTION, FORMAT, PREFIX, fitting, read_description, read_packaged, write_configs
from espnet_ee.score.calibrate import PROMISES
from espnet_ee.score.points import read_exits
from espnet_ee.store.checkpoint import MODEL_FILE, check_device, experiment_files, load_model, load_trained
from espnet_ee.store.interctc import from_interctc
from espnet_ee.store.model_card import Card, write_card
from espnet_ee.store.onnx_description import read_export
from espnet_ee.store.tensors import write_safetensors
from espnet_ee.store.train_config import copy_needed_files, read_train_config, sampling_rate

# Of a training's configuration: where its data were and where it wrote. Nobody else needs to know.
_PRIVATE = ("config", "output_dir", "init_param", "train_data_path_and_name_and_type", "valid_data_path_and_name_and_type",
            "train_shape_file", "valid_shape_file", "non_linguistic_symbols")  # fmt: skip
MADE = "made"
"""In a package's description: its files as they were packed, with their checksums."""
DOWNLOADED = ("config.yaml", MODEL_FILE, DESCRIPTION, f"{PREFIX}*.yaml", "*.npz", "*.model", "*.arpa", "lexicon*.txt")


@dataclass(frozen=True)
class Package:
    """A loaded model with its decoding configurations.

    Attributes:
        model: in evaluation mode.
        sample_rate: of the audio it takes, in Hz.
        configs: by name.
        default: the name of the one that is used where none is asked for; None: the final exit.
    """

    model: ESPnetASRModel
    sample_rate: int
    configs: Mapping[str, DecodingConfig]
    default: str | None = None


def pack_model(
    train_config: str | Path,
    model_file: str | Path,
    out: str | Path,
    card: Card,
    configs: Sequence[str | Path] = (),
    exits_csv: str | Path | None = None,
    onnx: str | Path | None = None,
) -> Path:
    """Writes a package, whole or not at all, and loads it back before it takes its place.

    Args:
        train_config: ``config.yaml`` of the training.
        model_file: its parameters.
        out: a new folder or an earlier package, which is replaced.
        card: what the model card tells besides what follows from the model.
        configs: decoding configurations (``decode_NAME.yaml``); the first is the default. One listed twice is one.
        exits_csv: scores of stage 13, for the card.
        onnx: folder ``onnx/`` of the same model's export, which becomes a part of the package.

    Returns:
        ``out``.
    """
    out = Path(out)
    refuse_other_folder(out, (DESCRIPTION,), (train_config, model_file, *configs))
    _refuse_changed(out)
    config = from_interctc(read_train_config(train_config))
    model = load_model(train_config, model_file)
    described = _read_configs(configs, model.encoder.exit_layers)
    exported = None if onnx is None else read_export(Path(onnx), model)
    with atomic_dir(out) as folder:
        # The folder's own name in the configuration is empty: files are looked for beside config.yaml.
        told = with_architecture({key: value for key, value in config.items() if key not in _PRIVATE}, model)
        packed = copy_needed_files(told, folder, Path())
        write_yaml(folder / "config.yaml", packed)
        write_safetensors(folder / MODEL_FILE, model.state_dict())
        described = write_configs(folder, described)
        made_by = {"espnet_ee": __version__, "espnet": espnet_version()}
        default = next(iter(described), None)
        if exits_csv is not None:
            (folder / "exits.csv").write_bytes(Path(exits_csv).read_bytes())
        if onnx is not None:
            shutil.copytree(onnx, folder / ONNX)
        write_card(folder / "README.md", card, packed, model, described, default, exits_csv, exported)
        made = {name: file_digest(path) for name, path in _files(folder).items()}
        write_yaml(folder / DESCRIPTION, {"format": FORMAT, "default": default, **made_by, MADE: made})
        load_package(folder)
    return out


def _files(folder: Path) -> dict[str, Path]:
    """All files of a package but the one that describes it, by their place in it."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths.pop(DESCRIPTION, None)
    return paths


def _refuse_changed(out: Path) -> None:
    """Raises UserError for what somebody has put into an earlier package, or changed there: a corrected card would be lost."""
    made: Any = None
    if (out / DESCRIPTION).is_file():
        with suppress(UserError):  # damaged: what was made is not known, and is made again
            made = read_description(out).get(MADE)
    for name, path in _files(out).items() if isinstance(made, dict) else ():
        if made.get(name) != file_digest(path):
            raise UserError(
                f"{path}: was changed or added after {out} was packed, and would be lost; move it away or give another folder"
            )


def with_architecture(config: Mapping[str, Any], model: ESPnetASRModel) -> dict[str, Any]:
    """The configuration with what a fine-tuned encoder is in place of where its training began: nobody else has that folder."""
    conf, architecture = config["encoder_conf"] or {}, getattr(model.encoder, "architecture", None)
    if architecture is None:
        return dict(config)
    conf = {key: value for key, value in conf.items() if key != "pretrained"}
    return {**config, "encoder_conf": {**conf, "architecture": architecture}}


def _read_configs(paths: Sequence[str | Path], exit_layers: Sequence[int]) -> dict[str, DecodingConfig]:
    """Decoding configurations by name, checked against the model."""
    configs: dict[str, DecodingConfig] = {}
    for path in paths:
        name, config = Path(path).stem.removeprefix(PREFIX), fitting(DecodingConfig.read(path), path, exit_layers)
        if configs.setdefault(name, config) != config:
            raise UsageError(f"{path}: another decoding configuration has the name {name}, too; rename one")
    return configs


def load_package(folder: str | Path, device: str = "cpu") -> Package:
    """Loads a package's folder. Nothing in it is trusted: see :mod:`espnet_ee.store.untrusted`.

    Raises:
        UserError: a file is missing, damaged, does not fit the others, or asks for what a package may not ask for.
    """
    folder = Path(folder)
    read_description(folder)
    model, config = load_trained(folder / "config.yaml", folder / MODEL_FILE, device)
    packaged = read_packaged(folder, model.encoder.exit_layers)
    return Package(model, sampling_rate(config), packaged.configs, packaged.default)


def open_model(source: str | Path, device: str = "cpu", model_file: str | Path | None = None) -> Package:
    """Loads a model by what people have of it: a package, an experiment, or its name on the Hugging Face hub.

    Args:
        source: a folder; only a name like ``owner/model`` whose first part is no folder here reaches the network.
        device: torch device.
        model_file: of an experiment, see :func:`experiment_files`.
    """
    check_device(device)
    folder = model_folder(source, DOWNLOADED)
    # What was downloaded is a package or nothing: an experiment's files are trusted.
    if not Path(source).is_dir() or (model_file is None and (folder / DESCRIPTION).exists()):
        return load_package(folder, device)
    if model_file is None and (folder / MODEL_FILE).is_file() and any(folder.glob(f"{PREFIX}*.yaml")):
        raise UserError(
            f"{folder}: a package without its {DESCRIPTION}, which says how it is used; get the whole package again"
        )
    model, config = load_trained(*experiment_files(folder, model_file), device)
    configs = _read_configs(calibrated_configs(folder), model.encoder.exit_layers)
    return Package(model, sampling_rate(config), configs, next(iter(configs), None))


def _promised(path: Path) -> list[str]:
    """The configurations' names in the order of their calibration, where that is known."""
    try:
        return [point.name for point in read_exits(path)]
    except UserError:
        return []


def calibrated_configs(experiment: str | Path) -> list[Path]:
    """The decoding configurations that stage 12 calibrated, the default first: of those that it ran online (else of all) a
    ``learned`` one (else any), for the first target."""
    folder = Path(experiment)
    order = _promised(folder / "policies" / PROMISES)

    def place(path: Path) -> tuple[bool, bool, int, str]:
        ran = any(folder.glob(f"{path.stem}/*/decode.yaml"))
        name = path.stem.removeprefix(PREFIX)
        return not ran, not name.startswith("learned"), order.index(name) if name in order else len(order), name

    return sorted((folder / "policies").glob(f"{PREFIX}*.yaml"), key=place)
