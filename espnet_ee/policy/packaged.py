"""The decoding configurations that a package carries, and the one it is recognised with where nobody asks for another."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from espnet_ee.errors import UserError
from espnet_ee.files import is_beside, is_file, read_untrusted_yaml, write_yaml
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.searching import SearchConfig, is_kenlm_binary

DESCRIPTION = "package.yaml"  # the file that makes a folder a package
FORMAT = 1
PREFIX = "decode_"
_CALLED, _ENDINGS = {"lm": "language model", "lexicon": "lexicon"}, {"lm": ".arpa", "lexicon": ".txt"}


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

    Raises:
        UserError: a file is missing, broken, or does not fit the model, whose exit layers are given.
    """
    return read_configs(folder, read_description(folder).get("default"), folder / DESCRIPTION, exit_layers)


def read_configs(folder: Path, default: Any, where: Path, exit_layers: Sequence[int]) -> PackagedConfigs:
    """Reads the ``decode_NAME.yaml`` of a folder that is not trusted, if it has some.

    Args:
        folder: has them, or none.
        default: the name of one of them, or None; ``where`` is the file that says it.
        where: for messages.
        exit_layers: the model's, rising.

    Raises:
        UserError: a file is broken or does not fit the model, or there is no such default.
    """
    configs = {}
    for file in sorted(folder.glob(f"{PREFIX}*.yaml")):
        decoding = _with_own_files(DecodingConfig.from_mapping(read_untrusted_yaml(file), str(file)), file)
        configs[file.stem.removeprefix(PREFIX)] = fitting(decoding, file, exit_layers)
    if default is not None and (not isinstance(default, str) or default not in configs):
        raise UserError(f"{where}: default {default!r} is none of its decoding configurations")
    return PackagedConfigs(configs, default)


def _with_own_files(config: DecodingConfig, file: Path) -> DecodingConfig:
    """The configuration with its search's files, which must lie beside its own: a stranger names no others."""
    for key, name in config.search.files.items():
        if not is_beside(name) or not is_file(file.parent / name):
            raise UserError(f"{file}: search: {key} {name!r} is not a file beside it, refused")
        if is_kenlm_binary(file.parent / name):  # KenLM maps it as it is into memory, whatever is in it
            raise UserError(f"{file}: search: {key} {name!r} is KenLM's binary, refused; packages carry ARPA files")
    return replace(config, search=config.search.beside(file.parent))


def write_configs(folder: Path, configs: Mapping[str, DecodingConfig]) -> dict[str, DecodingConfig]:
    """Writes ``decode_NAME.yaml`` for each, and beside them the language models and lexicons that they name, each once.

    Returns:
        The configurations as they are written.

    Raises:
        UserError: there is no such file.
    """
    names: dict[Path, str] = {}
    written = {}
    for name, config in configs.items():
        for key, given in config.search.files.items():
            if not is_file(given):
                raise UserError(f"{PREFIX}{name}.yaml: search: no such {_CALLED[key]} as {given}; mend its path")
            if is_kenlm_binary(given):
                raise UserError(
                    f"{PREFIX}{name}.yaml: search: {given} is KenLM's binary; name the ARPA file that it was made of"
                )
            path, ending = Path(given).resolve(), _ENDINGS[key]
            if path not in names:
                count = sum(other.endswith(ending) for other in names.values()) + 1
                names[path] = f"{key}{count if count > 1 else ''}{ending}"
                shutil.copyfile(path, folder / names[path])
        if isinstance(config.search, SearchConfig):
            config = replace(config, search=config.search.with_files(lambda path: names[Path(path).resolve()]))
        written[name] = config
        write_yaml(folder / f"{PREFIX}{name}.yaml", config.to_mapping())
    return written


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
    """The configuration. Raises UserError, which names its file, if its policy does not fit the model's exits."""
    try:
        config.policy_for(exit_layers)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config
