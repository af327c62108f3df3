"""A model trained on stored features becomes one that takes audio: only its configuration changes, not a parameter."""

from __future__ import annotations

from pathlib import Path

import yaml

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write, read_yaml


def write_raw_audio_config(config: Path, frontend: Path, out: Path) -> None:
    """Writes the training configuration of a feature model as that of the same model with its frontend in front.

    Args:
        config: ``config.yaml`` of a model trained with ``feats_type: extracted``.
        frontend: ``frontend.yaml`` of the features it was trained on.
        out: the configuration to write; it goes with the same checkpoint.

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
    changed = {**trained, "input_size": None, "frontend": "default", "frontend_conf": conf}
    with atomic_write(out) as stream:
        yaml.safe_dump(changed, stream, sort_keys=False)
