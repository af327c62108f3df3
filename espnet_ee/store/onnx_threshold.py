"""Changes when a self-stopping file stops; needs neither torch nor ESPnet, so that it takes no time to start."""

from __future__ import annotations

from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.files import read_yaml, write_yaml
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.store.onnx_files import set_threshold
from espnet_ee.store.onnx_names import DESCRIPTION, FOLDER, KINDS
from espnet_ee.store.onnx_stop import threshold_of


def change_threshold(folder: str | Path, threshold: float) -> list[Path]:
    """Changes the threshold of the self-stopping files of an export, each atomically; ``model.yaml`` tells it then, too.

    Args:
        folder: that holds ``onnx/``.
        threshold: of the policy; of ``fixed`` the exit layer.

    Returns:
        The changed files.

    Raises:
        UserError: the folder holds no such file, or the threshold does not fit the policy.
    """
    path = Path(folder) / FOLDER / DESCRIPTION
    description = read_yaml(path, "give the folder that espnet-ee export wrote to")
    entry = description.get("self_stopping")
    if not isinstance(entry, dict):
        raise UserError(f"{path}: no self-stopping file was exported; export with --policy")
    config = DecodingConfig.from_mapping(entry["policy"], str(path))
    fixed = config.policy is None or isinstance(config.policy, FixedExitPolicy)
    changed = config.changed(settings={"exit_layer" if fixed else "threshold": f"{threshold:g}" if fixed else threshold})
    set_to = threshold_of(changed.policy_for(description["exit_layers"]))
    files = [path.parent / entry[kind] for kind in KINDS if kind in entry]
    for file in files:
        set_threshold(file, set_to)
    entry["policy"] = changed.to_mapping()
    write_yaml(path, description)
    return files
