"""Changes when a self-stopping file stops; needs neither torch nor ESPnet, so that it takes no time to start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from espnet_ee.errors import UserError
from espnet_ee.exported import DESCRIPTION, FOLDER, KINDS, export_folder
from espnet_ee.files import is_beside, is_file, read_yaml, write_yaml
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.store.onnx_files import set_threshold
from espnet_ee.store.onnx_stop import threshold_of


def change_threshold(folder: str | Path, threshold: float) -> tuple[list[Path], str, float]:
    """Changes the threshold of the self-stopping files of an export, each atomically; ``model.yaml`` tells it then, too.

    Args:
        folder: that holds ``onnx/``, or that folder itself.
        threshold: of the policy; of ``fixed`` the exit layer.

    Returns:
        The changed files, the name of the policy that they hold, and the threshold that it had: each policy has a scale of its own.

    Raises:
        UserError: the folder holds no such file, or the threshold does not fit the policy.
    """
    path = export_folder(Path(folder)) / DESCRIPTION
    if not is_file(path):
        raise UserError(
            f"{folder}: holds no exported model ({FOLDER}/{DESCRIPTION}); give the folder that espnet-ee export wrote"
        )
    description = read_yaml(path, "export the model again")
    entry: Any = description.get("self_stopping")
    layers: Any = description.get("exit_layers")
    if not isinstance(entry, dict):
        raise UserError(f"{path}: no self-stopping file was exported; export with --policy")
    names = [entry[kind] for kind in KINDS if kind in entry]
    if not (isinstance(entry.get("policy"), dict) and _are_layers(layers) and all(map(is_beside, names))):
        raise UserError(f"{path}: self_stopping or exit_layers is not what an export writes; export the model again")
    config = DecodingConfig.from_mapping(entry["policy"], str(path))
    fixed = config.policy is None or isinstance(config.policy, FixedExitPolicy)
    before = config.policy_for(layers)
    changed = config.changed(settings={"exit_layer" if fixed else "threshold": f"{threshold:g}" if fixed else threshold})
    set_to = threshold_of(changed.policy_for(layers))
    files = [path.parent / name for name in names]
    for file in files:
        set_threshold(file, set_to)
    entry["policy"] = changed.to_mapping()
    write_yaml(path, description)
    return files, before.name, threshold_of(before)


def _are_layers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(layer, int) for layer in value)
