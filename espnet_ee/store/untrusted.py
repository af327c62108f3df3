"""What a package from a stranger may ask for. Each check comes before the thing it guards against could happen.

ESPnet's configurations can name downloads (``frontend: s3prl``), files anywhere, and layers of any size; a package
may hold nothing but the parts that espnet_ee itself trains, files beside its ``config.yaml``, and sizes that its
parameters have.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet_ee.errors import UserError
from espnet_ee.files import is_beside, is_file, read_untrusted_yaml
from espnet_ee.model.decoders import has_decoders
from espnet_ee.plugin.classes import ENCODERS, FRONTENDS, MODELS
from espnet_ee.store.build import build_model, fit_state
from espnet_ee.store.tensors import SAFETENSORS, read_header, read_tensors
from espnet_ee.store.train_config import check_encoder, map_files

MAX_STATISTICS_BYTES = 1 << 20  # two sums a feature
# Positions, filters, kernels: sizes that leave no trace in the parameters. Sampling rates are the largest in use.
MAX_NUMBER = 200_000
MAX_WORD = 100  # kernel sizes come in words, too
# The layers and masks of ESPnet's enhancement are built before the parameters are looked at, and are few wherever it is used.
_LIMITS = {"n_fft": 16384, "n_mels": 1024, "num_blocks": 256, "wlayers": 16, "blayers": 16, "bnmask": 16}
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "encoder": tuple(ENCODERS),
    "model": (*MODELS, "espnet"),
    "frontend": (None, "default", *FRONTENDS),
    "specaug": (None, "specaug"),
    "normalize": (None, "global_mvn", "utterance_mvn"),
    "preencoder": (None, "linear"),
    "postencoder": (None,),
    "decoder": (None, "transformer"),
    "init": (None, "chainer", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"),
    "use_adapter": (None, False),
}
_SECTIONS = ("encoder_conf", "model_conf", "frontend_conf", "specaug_conf", "normalize_conf", "preencoder_conf", "decoder_conf",
             "ctc_conf")  # fmt: skip


def check_package(config: Path, model_file: Path) -> dict[str, Any]:
    """Checks what a model is to be made of, before it is; of the parameters no more than names, sizes and types are read.

    Returns:
        The configuration.

    Raises:
        UserError: names the file, and the key or tensor, that is damaged, does not fit the others or asks for too much.
    """
    content = read_untrusted_yaml(config)
    check_config(content, config)
    state = read_header(model_file) if model_file.suffix == SAFETENSORS else read_tensors(model_file)
    check_sizes(content, state, model_file)
    return content


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raises UserError for a package's configuration that asks for another class, a file elsewhere or a size beyond reason."""
    for key in ("encoder", "encoder_conf", "model", "token_list"):
        if key not in config:
            raise UserError(f"{path}: lacks the key {key!r}; this is no package of espnet_ee")
    check_encoder({"encoder": str(config["encoder"])}, path)
    for key, allowed in _ALLOWED.items():
        if key in config and config[key] not in allowed:
            choices = ", ".join(str(choice) for choice in allowed)
            raise UserError(f"{path}: {key} {config[key]!r} is not allowed in a package; it may be {choices}")
    tokens = config.get("token_list")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{path}: token_list is no list of tokens")
    for section in _SECTIONS:
        if not isinstance(config.get(section) or {}, dict):
            raise UserError(f"{path}: {section} is no table")
        _check_numbers(config.get(section), f"{path}: {section}")
    conf = config["encoder_conf"] or {}
    if conf.get("pretrained"):
        raise UserError(
            f"{path}: encoder_conf: pretrained {conf['pretrained']!r} names a model elsewhere, refused; a package has its own "
            "parameters, and architecture says of what"
        )
    if not isinstance(conf.get("architecture") or {}, dict):
        raise UserError(f"{path}: encoder_conf: architecture is no table")
    map_files(config, lambda key, name: _check_file(path, key, name))
    _check_numbers(config.get("input_size"), f"{path}: input_size")


def _check_file(path: Path, key: str, name: Any) -> str:
    if not is_beside(name) or not is_file(path.parent / name):
        raise UserError(f"{path}: {key} {name!r} is not a file beside it, refused")
    if key == "stats_file":
        _check_statistics(path.parent / name)
    return str(name)


def _check_statistics(path: Path) -> None:
    """ESPnet loads statistics and computes with them before it looks at them: neither may fill memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # Zeros unpack to a thousand times their size; of other methods zipfile unpacks blocks beyond the declared size.
            if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
                raise UserError(f"{path}: is not compressed as numpy does it, refused")
            size = max(path.stat().st_size, sum(member.file_size for member in members))
            if size > MAX_STATISTICS_BYTES:
                raise UserError(f"{path}: holds {size} bytes of statistics, more than {MAX_STATISTICS_BYTES}, refused")
        with np.load(path) as loaded:
            count, total, squares = (loaded[name] for name in ("count", "sum", "sum_square"))
        # Of other shapes numpy would compute every combination.
        if count.size != 1 or total.ndim != 1 or total.shape != squares.shape:
            raise UserError(f"{path}: is not a count and two sums of one length, refused")
    except UserError:
        raise
    except Exception as error:  # whatever zipfile and numpy say of a damaged file
        raise UserError(f"{path}: not a file of statistics: {error}") from None


def _check_numbers(value: Any, where: str, limit: int = MAX_NUMBER) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_numbers(entry, f"{where}: {key}", _LIMITS.get(key, limit))
    elif isinstance(value, list):
        for entry in value:
            _check_numbers(entry, where, limit)
    elif isinstance(value, str) and len(value) > MAX_WORD:
        raise UserError(f"{where} is longer than {MAX_WORD}, refused")
    elif isinstance(value, (int, float)) and not abs(value) <= limit:  # NaN, too
        raise UserError(f"{where} {value} is beyond {limit}, refused")


def check_sizes(config: Mapping[str, Any], state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Checks, on torch's ``meta`` device, that the model has the sizes of its file's tensors (or of what its header declares)."""
    stored = {name.split(".")[2] for name in state if name.startswith("encoder.encoders.")}
    conf = config["encoder_conf"] or {}
    blocks = conf.get("num_blocks") or (conf.get("architecture") or {}).get("num_hidden_layers")
    if blocks is not None and blocks != len(stored):
        raise UserError(f"{path}: has {len(stored)} blocks, config.yaml asks for {blocks}")
    stored = {name.split(".")[2] for name in state if name.startswith("decoder.decoders.")}
    blocks = (config.get("decoder_conf") or {}).get("num_blocks")
    if has_decoders(config) and blocks not in (None, len(stored)):  # there are as many at every exit
        raise UserError(f"{path}: has {len(stored)} decoder blocks, config.yaml asks for {blocks}")
    # Statistics come from a file of the package and are compared when the model is built in earnest.
    meta = {**config, "normalize": None, "init": None}
    with torch.device("meta"):
        shapes = build_model(meta, path.with_name("config.yaml"))
    fit_state(shapes, {name: value for name, value in state.items() if not name.startswith("normalize.")}, path)
