"""The decoding configurations that a package carries, and the one it is recognised with where nobody asks for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_ee.errors import UserError
from espnet_ee.files import read_untrusted_yaml
from espnet_ee.policy.decoding import DecodingConfig

DESCRIPTION = "package.yaml"  # the file that makes a folder a package
FORMAT = 1
PREFIX = "decode_"


@dataclass(frozen=True)
class PackagedConfigs:
    """Decoding configurations by name.

    Attributes:
        configs: each fits the model's exits.
        default: the name of the one that is used where none is asked for; None: the final exit.
    """

    configs: Mapping[str, DecodingConfig] = field(default_factory=dict)
    default: str | None = None


def read_packaged(folder: Path, exit_layers: Sequence[int]) -> PackagedConfigs:
    """Reads ``package.yaml`` and the ``decode_NAME.yaml`` beside it. Nothing in the folder is trusted.

    Args:
        folder: the package.
        exit_layers: the model's, rising.

    Raises:
        UserError: a file is missing, broken, or does not fit the model.
    """
    return read_configs(folder, read_description(folder).get("default"), folder / DESCRIPTION, exit_layers)


def read_configs(folder: Path, default: Any, where: Path, exit_layers: Sequence[int]) -> PackagedConfigs:
    """Reads the ``decode_NAME.yaml`` of a folder that is not trusted.

    Args:
        folder: has them, or none.
        default: the name of one of them, or None.
        where: the file that names it, for messages.
        exit_layers: the model's, rising.

    Raises:
        UserError: a file is broken or does not fit the model, or there is no such default.
    """
    configs = {}
    for file in sorted(folder.glob(f"{PREFIX}*.yaml")):
        decoding = DecodingConfig.from_mapping(read_untrusted_yaml(file), str(file))
        configs[file.stem.removeprefix(PREFIX)] = fitting(decoding, file, exit_layers)
    if default is not None and (not isinstance(default, str) or default not in configs):
        raise UserError(f"{where}: default {default!r} is none of its decoding configurations")
    return PackagedConfigs(configs, default)


def read_description(folder: Path) -> dict[str, Any]:
    """A package's ``package.yaml``.

    Raises:
        UserError: it is missing or broken, or of another format.
    """
    description = read_untrusted_yaml(folder / DESCRIPTION)
    if description.get("format") != FORMAT:
        raise UserError(f"{folder / DESCRIPTION}: format {description.get('format')!r}, not {FORMAT}; update espnet_ee")
    return description


def fitting(config: DecodingConfig, path: str | Path, exit_layers: Sequence[int]) -> DecodingConfig:
    """The configuration. Raises UserError, which names its file, if its policy does not fit the model's exits, or if it names a
    language model: a package holds none, and what a stranger's file names is not read."""
    try:
        config.policy_for(exit_layers)
        if config.search.lm is not None:
            raise UserError("search: an lm does not travel with a model; give the configuration's file as the policy")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config
