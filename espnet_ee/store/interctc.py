"""Stock InterCTC models read as early-exit models with a shared head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espnet_ee.host.signature import parameters_of
from espnet_ee.plugin.classes import PREFIX, STOCK_ENCODERS

_OF_TRAINING = ("interctc_layer_idx", "layer_drop_rate", "gradient_checkpoint_layers")  # nothing of it is left in the model


def from_interctc(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rewrites the configuration of a stock InterCTC model: the same parameters, read as a shared-head early-exit model.

    The layers of ``interctc_layer_idx`` and the last block become the exits, also where the blocks above read their heads
    (``interctc_use_conditioning``); the model stays ESPnet's own. Any other configuration comes back as it is.
    """
    conf = dict(config.get("encoder_conf") or {})
    layers = conf.get("interctc_layer_idx") or []
    if not layers or str(config["encoder"]) not in STOCK_ENCODERS:
        return dict(config)
    stock = parameters_of(STOCK_ENCODERS[config["encoder"]])
    # ESPnet writes into config.yaml what was given, and its own default is the older kind of positions.
    positions = conf.get("pos_enc_layer_type", stock["pos_enc_layer_type"].default)
    if "rel_pos_type" in stock and positions == "rel_pos":
        conf.setdefault("rel_pos_type", stock["rel_pos_type"].default)
    elif positions != "rel_pos":
        conf.pop("rel_pos_type", None)
    blocks = conf.get("num_blocks", stock["num_blocks"].default)
    conf = {name: value for name, value in conf.items() if name not in _OF_TRAINING}
    conf["exit_layers"] = [*sorted(layers), blocks]
    conf["exit_norm"] = "none" if config["encoder"] == "e_branchformer" else "shared"
    return {**config, "encoder": PREFIX + config["encoder"], "encoder_conf": conf}
