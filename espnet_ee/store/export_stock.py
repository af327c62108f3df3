"""One exit of an early-exit model, written as a stock ESPnet model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.encoder.base import block_of
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import atomic_dir, atomic_write, refuse_other_folder, write_yaml
from espnet_ee.host.signature import parameters_of
from espnet_ee.model.decoders import exit_decoders_of, has_decoders
from espnet_ee.model.heads import exit_heads_of
from espnet_ee.plugin.classes import FRONTENDS, PREFIX, STOCK_ENCODERS
from espnet_ee.store.build import check_keys
from espnet_ee.store.checkpoint import load_model
from espnet_ee.store.interctc import from_interctc
from espnet_ee.store.train_config import copy_needed_files, read_train_config


def export_stock(train_config: str | Path, model_file: str | Path, exit_layer: int, output_dir: str | Path) -> Path:
    """Writes one exit as a plain ESPnet model of that many blocks, which needs no plug-in.

    The exit's own norm becomes ``after_norm``, its head ``ctc``, its attention decoder ``decoder``; blocks above, other exits and
    the decoder of a stock model (it was trained on the last block) are left out. Files that the configuration names are copied
    along.

    Args:
        train_config: ``config.yaml`` of the early-exit training.
        model_file: its parameters.
        exit_layer: the exit's block, 1-based.
        output_dir: new, or an earlier export, which is replaced as a whole: ``config.yaml``, ``model.pth``.

    Returns:
        The folder. ``espnet2.bin.asr_inference.Speech2Text`` loads its two files, from the same working folder.

    Raises:
        UserError: the model has no such exit, or it or the exit no stock form; or ``output_dir`` is something else than an export.
    """
    from espnet2.tasks.asr import ASRTask  # seconds, which nobody waits for to read a model

    output_dir = Path(output_dir)
    refuse_other_folder(output_dir, ("model.pth",), (train_config, model_file))
    config = from_interctc(read_train_config(train_config))
    model = load_model(train_config, model_file)
    lack = stock_lacks(config)
    if lack:
        raise UserError(f"{train_config}: {lack} is none of ESPnet's own: no exit of this model can be a plain ESPnet model")
    check_exit_layer(model, exit_layer)
    with atomic_dir(output_dir) as folder:
        alone = stock_config(config, exit_layer)
        exported = copy_needed_files(alone, folder, output_dir)
        # Built by the stock task from what a stranger will read, so that no key is missing or left over.
        stock = ASRTask.build_model(argparse.Namespace(**alone))
        state = stock_state(model, exit_layer)
        check_keys(stock.state_dict(), state, model_file)
        write_yaml(folder / "config.yaml", exported)
        with atomic_write(folder / "model.pth", "wb") as stream:
            torch.save(state, stream)
    return output_dir


def stock_lacks(config: Mapping[str, Any]) -> str | None:
    """What a training's configuration names that ESPnet has not without us, beside exits; None: nothing."""
    if config["encoder"].removeprefix(PREFIX) not in STOCK_ENCODERS:
        return f"encoder {config['encoder']}"
    return f"frontend {config['frontend']}" if config.get("frontend") in FRONTENDS else None


def stock_config(config: Mapping[str, Any], exit_layer: int) -> dict[str, Any]:
    """The configuration of the exit after block ``exit_layer`` as a stock model, of CTC alone or with the exit's decoder."""
    encoder = config["encoder"].removeprefix(PREFIX)
    known = parameters_of(STOCK_ENCODERS[encoder])
    blocks = config["encoder_conf"]["exit_layers"][-1]
    conf = {
        # A setting per block (Branchformer's) is cut to the blocks that stay.
        name: value[:exit_layer] if isinstance(value, list) and len(value) == blocks else value
        for name, value in config["encoder_conf"].items()
        if name in known
    }
    conf["num_blocks"] = exit_layer
    if conf.pop("interctc_use_conditioning", False):
        below = [layer for layer in config["encoder_conf"]["exit_layers"] if layer < exit_layer]
        conf |= {"interctc_use_conditioning": True, "interctc_layer_idx": below} if below else {}
    if "rel_pos_type" in known:
        conf.setdefault("rel_pos_type", "latest")  # our default, where the stock conformer has another
    model_known = parameters_of(ESPnetASRModel)
    model_conf = {name: value for name, value in (config.get("model_conf") or {}).items() if name in model_known}
    with_decoder = has_decoders(config)
    model_conf.update({"interctc_weight": 0.0} if with_decoder else {"ctc_weight": 1.0, "interctc_weight": 0.0})
    return {
        **config,
        "encoder": encoder,
        "encoder_conf": conf,
        "model": "espnet",
        "model_conf": model_conf,
        **({} if with_decoder else {"decoder": None, "decoder_conf": {}}),
    }


def stock_state(model: ESPnetASRModel, exit_layer: int) -> dict[str, torch.Tensor]:
    """The parameters of the exit after block ``exit_layer`` under their stock names.

    Raises:
        UserError: the exit has no norm, where stock always ends in ``after_norm``; or its head, or one that its blocks read, has
            no stock form.
    """
    if model.encoder.exit_norm_of(exit_layer) is None and hasattr(model.encoder, "after_norm"):
        raise UserError(
            f"exit_layer {exit_layer}: with exit_norm none it has no norm, and a stock encoder always ends in one; "
            f"only the final exit ({model.encoder.exit_layers[-1]}) can be exported"
        )
    lowest, own = model.encoder.exit_layers[0], len(getattr(model, "exit_ctc", ())) or len(model.encoder.exit_norms)
    if model.encoder.conditioned and own and exit_layer > lowest:
        raise UserError(
            f"exit_layer {exit_layer}: its blocks read exits with heads or norms of their own, where a stock encoder has one; "
            f"only the exit after block {lowest} can be exported"
        )
    if exit_heads_of(model).by_layer[exit_layer].stock_state() is None:
        raise UserError(f"exit_layer {exit_layer}: its kind of head has no stock form and cannot be exported")
    return {name: value.detach().clone() for name, value in exit_state(model, exit_layer).items()}


def exit_state(model: ESPnetASRModel, exit_layer: int) -> dict[str, torch.Tensor]:
    """What stopping at an exit uses of a model: everything up to its block, its norm, its head and its decoder, as stock names them."""
    replaced = ("encoder.exit_norms.", "encoder.after_norm.", "exit_", "ctc.", "decoder.")
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(replaced)}
    state = {name: value for name, value in state.items() if block_of(name.removeprefix("encoder.")) <= exit_layer}
    if exit_layer == model.encoder.exit_layers[0]:  # of a conditioned encoder: no block so far read an exit
        state = {name: value for name, value in state.items() if not name.startswith("encoder.conditioning_layer.")}
    head = exit_heads_of(model).by_layer[exit_layer]
    state.update((f"ctc.{name}", value) for name, value in (head.stock_state() or head.state_dict()).items())
    decoder = exit_decoders_of(model).get(exit_layer)
    if decoder is not None:
        state.update((f"decoder.{name}", value) for name, value in decoder.state_dict().items())
    norm = model.encoder.exit_norm_of(exit_layer)
    if norm is not None:
        state.update((f"encoder.after_norm.{name}", value) for name, value in norm.state_dict().items())
    return state


def parameter_counts(model: ESPnetASRModel) -> dict[int, int]:
    """Numbers that a training learned and that stopping at an exit uses, by exit layer."""
    learned = {value.data_ptr() for value in model.parameters()}
    return {
        layer: sum(value.numel() for value in exit_state(model, layer).values() if value.data_ptr() in learned)
        for layer in model.encoder.exit_layers
    }


def check_exit_layer(model: ESPnetASRModel, layer: int) -> None:
    """Raises UsageError if a model has no such exit."""
    if layer not in model.encoder.exit_layers:
        raise UsageError(f"exit_layer {layer}: no exit there; the exits are {', '.join(map(str, model.encoder.exit_layers))}")
