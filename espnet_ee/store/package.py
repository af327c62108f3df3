"""Packages: a trained model as one folder or archive that others can load, and opening one from a stranger.

A package is flat: ``config.yaml`` (with the token list), ``model.pth`` (tensors only), ``policies.yaml``, ``README.md``
(the model card), and where there are any the BPE model, the normalisation's statistics and ``exits.csv``.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import atomic_dir, atomic_write, refuse_other_folder
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.registry import build_policy
from espnet_ee.store.archive import open_archive, write_archive
from espnet_ee.store.checkpoint import build_model, fit_state, load_model, move, read_tensors
from espnet_ee.store.export_stock import copy_needed_files
from espnet_ee.store.interctc import from_interctc
from espnet_ee.store.model_card import Card, write_card
from espnet_ee.store.train_config import NEEDED_FILES, read_train_config
from espnet_ee.store.untrusted import check_config, check_sizes, read_untrusted_yaml

SUFFIX = ".zip"
# Of a training's configuration: where its data were and where it wrote. Nobody else needs to know.
_PRIVATE = ("config", "output_dir", "init_param", "train_data_path_and_name_and_type", "valid_data_path_and_name_and_type",
            "train_shape_file", "valid_shape_file")  # fmt: skip
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Package:
    """A loaded package: the model in evaluation mode, and by name, in the order they were packed, its policies.

    Attributes:
        model: in evaluation mode.
        policies: by name, in the order they were packed.
    """

    model: ESPnetASRModel
    policies: dict[str, ExitPolicy]

    def policy(self, name: str | None = None) -> ExitPolicy:
        """The policy of that name; without a name the first one, or the final exit where there is none."""
        if name is not None and name not in self.policies:
            raise UserError(f"policy {name!r} is not in the package; it has {', '.join(self.policies) or 'none'}")
        if name is not None:
            return self.policies[name]
        return next(iter(self.policies.values()), FixedExitPolicy(self.model.encoder.exit_layers[-1]))


def pack_model(
    train_config: str | Path,
    model_file: str | Path,
    outpath: str | Path,
    card: Card,
    policies: Sequence[str | Path] = (),
    exits_csv: str | Path | None = None,
) -> Path:
    """Writes a package, whole or not at all, and loads it back before it takes its place.

    Args:
        train_config: ``config.yaml`` of the training.
        model_file: its parameters.
        outpath: a new folder or an earlier package, which is replaced, or an archive when it ends in ``.zip``.
        card: what the model card tells besides what follows from the model.
        policies: decoding configurations (``policy``, ``policy_conf``); their file names become their names.
        exits_csv: scores of stage 13, for the card.

    Returns:
        ``outpath``.
    """
    outpath = Path(outpath)
    if outpath.suffix != SUFFIX:
        refuse_other_folder(outpath, ("policies.yaml",), (train_config, model_file, *policies))
    config = from_interctc(read_train_config(train_config), train_config)
    model = load_model(train_config, model_file)
    final = model.encoder.exit_layers[-1]
    chosen = {Path(path).stem: _read_policy(Path(path), final) for path in policies}
    if len(chosen) < len(policies):
        raise UsageError("policies: two files have one name, by which a user could not tell them apart; rename one")
    with tempfile.TemporaryDirectory() as scratch, atomic_dir(Path(scratch) / "package") as made:
        _write_package(made, config, model, chosen, card, exits_csv)
        load_package(made)
        if outpath.suffix == SUFFIX:
            write_archive(made, outpath)
        else:
            with atomic_dir(outpath) as folder:
                for file in made.iterdir():
                    (folder / file.name).write_bytes(file.read_bytes())
    return outpath


def _write_package(
    folder: Path,
    config: Mapping[str, Any],
    model: ESPnetASRModel,
    policies: Mapping[str, Any],
    card: Card,
    exits_csv: str | Path | None,
) -> None:
    # The folder's own name in the configuration is empty: files are looked for beside config.yaml.
    packed = copy_needed_files({key: value for key, value in config.items() if key not in _PRIVATE}, folder, Path())
    with atomic_write(folder / "config.yaml") as stream:
        yaml.safe_dump(packed, stream, sort_keys=False, allow_unicode=True)
    with atomic_write(folder / "model.pth", "wb") as stream:
        torch.save(model.state_dict(), stream)
    with atomic_write(folder / "policies.yaml") as stream:
        yaml.safe_dump(dict(policies), stream, sort_keys=False, allow_unicode=True)
    if exits_csv is not None:
        (folder / "exits.csv").write_bytes(Path(exits_csv).read_bytes())
    write_card(folder / "README.md", card, packed, model, policies, exits_csv)


def _read_policy(path: Path, final_exit: int) -> dict[str, Any]:
    """Policy and settings of a decoding configuration."""
    mapping = DecodingConfig.read(path).to_mapping()
    return {"policy": mapping["policy"], "policy_conf": mapping["policy_conf"] or {"exit_layer": final_exit}}


def load_package(folder: str | Path, device: str = "cpu") -> Package:
    """Loads a package's folder. Nothing in it is trusted: see :mod:`espnet_ee.store.untrusted`.

    Raises:
        UserError: a file is missing, damaged, does not fit the others, or asks for what a package may not ask for.
    """
    folder = Path(folder)
    config = read_untrusted_yaml(folder / "config.yaml")
    check_config(config, folder / "config.yaml")
    state = read_tensors(folder / "model.pth")
    check_sizes(config, state, folder / "model.pth")
    model = build_model(located(config, folder), folder / "config.yaml")
    model.load_state_dict(fit_state(model, state, folder / "model.pth"))
    described = read_untrusted_yaml(folder / "policies.yaml") if (folder / "policies.yaml").exists() else {}
    policies = {}
    for name, policy in described.items():
        if not isinstance(policy, dict) or not isinstance(policy.get("policy_conf", {}), dict):
            raise UserError(f"{folder / 'policies.yaml'}: {name}: no policy")
        policies[name] = build_policy(str(policy.get("policy")), policy.get("policy_conf", {}))
    return Package(move(model, device).eval(), policies)


def located(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with the files it names where they are: beside it."""
    located = dict(config)
    for section, key in NEEDED_FILES:
        holder = located if section is None else dict(located.get(section) or {})
        if holder.get(key):
            holder[key] = str(folder / holder[key])
        if section is not None and section in located:
            located[section] = holder
    return located


@contextmanager
def open_package(source: str | Path) -> Iterator[Path]:
    """Yields the folder of a package that is a folder, an archive, or the name of a model on the Hugging Face hub.

    Only a name like ``owner/model`` whose first part is no folder here reaches the network.
    """
    path = Path(source)
    if path.is_dir():
        yield path
    elif path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            open_archive(path, folder)
            yield Path(folder)
    elif _HUB_NAME.fullmatch(os.fspath(source)) and not path.parent.exists() and path.suffix != SUFFIX:
        yield _download(os.fspath(source))
    else:
        raise UserError(f"{source}: no such folder or archive (and no name like owner/model of the hub)")


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{name}: no such folder; to download models install huggingface_hub (extra: hub)") from None
    patterns = ["config.yaml", "model.pth", "policies.yaml", "*.npz", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: no such folder, and the hub says: {first}") from None
