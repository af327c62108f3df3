"""The one module that knows that two versions of ESPnet exist (202511 and 202611).

``encoder/`` and ``model/`` import ESPnet's nets and the helpers for their differences from here.
"""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import Any

import torch

try:  # ESPnet >= 202604
    from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
    from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm
    from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import check_short_utt
except ImportError:
    from espnet.nets.pytorch_backend.nets_utils import make_pad_mask
    from espnet.nets.pytorch_backend.transformer.layer_norm import LayerNorm
    from espnet.nets.pytorch_backend.transformer.subsampling import check_short_utt

__all__ = [
    "LayerNorm",
    "accept_either_version",
    "check_short_utt",
    "espnet_version",
    "make_pad_mask",
    "mask_convolutions",
    "rename_keys",
]

try:
    from espnet2.legacy.nets.pytorch_backend.conformer import convolution as _convolution

    _STOCK_MASKS_PADDING = hasattr(_convolution, "mask_padded_frames")
except ImportError:
    _STOCK_MASKS_PADDING = False

# Parts of the subsampling layer: their names in 202511 and in 202611.
_SUBSAMPLING_NAMES = (("embed.out.0.", "embed.out."), ("embed.out.1.", "embed.pos_enc."))


def espnet_version() -> str:
    """The installed ESPnet's version, such as ``"202511"``."""
    return version("espnet")


def mask_convolutions(block: torch.nn.Module) -> None:
    """Makes a block's convolutions over time see zeros where an utterance is padded.

    ESPnet 202611 does this itself. In 202511 the padded frames hold biases (of the conformer's pointwise
    convolution and GLU, of the norm in a cgMLP, of the two branches that an E-Branchformer merges), so the
    last real frames of an utterance depend on what it is batched with. Hooks keep the stock modules, their
    parameter names and their arithmetic.

    Args:
        block: a block that is called as ``block(xs, masks)``.
    """
    over_time = [part for part in block.modules() if isinstance(part, torch.nn.Conv1d) and part.kernel_size[0] > 1]
    if _STOCK_MASKS_PADDING or not over_time:
        return
    current = threading.local()  # one model may serve several threads

    def remember(_: torch.nn.Module, arguments: tuple) -> None:
        current.mask = arguments[1]

    def zero_padding(_: torch.nn.Module, arguments: tuple) -> tuple:
        if current.mask is None:
            return arguments
        return (arguments[0].masked_fill(~current.mask.bool(), 0.0),)

    block.register_forward_pre_hook(remember)
    for convolution in over_time:
        convolution.register_forward_pre_hook(zero_padding)


def rename_keys(state: dict[str, torch.Tensor], wanted: set[str]) -> dict[str, torch.Tensor]:
    """Renames the subsampling layer's parameters to the running version's names.

    Args:
        state: parameters as read from a checkpoint of either version.
        wanted: names that the running model has.
    """
    return {_wanted_name(name, wanted): value for name, value in state.items()}


def _wanted_name(name: str, wanted: set[str]) -> str:
    """The name under which ``wanted`` has a parameter; as it is where it has it under neither version's."""
    if name in wanted:
        return name
    others = [name.replace(old, new) for old, new in _SUBSAMPLING_NAMES if old in name]
    others += [name.replace(new, old) for old, new in _SUBSAMPLING_NAMES if new in name]
    return next((other for other in others if other in wanted), name)


def accept_either_version(encoder: torch.nn.Module) -> None:
    """Lets an encoder load the parameters of its subsampling layer from either version, whoever loads them.

    ESPnet's ``--init_param`` merges a file into the model's own parameters, and its ``Speech2Text`` passes over what
    is missing. So 202511 leaves the layer of a 202611 file as it was, at random, without a word; and 202611, which
    knows the older names, drops them where its own are there, too.

    Args:
        encoder: has the layer as ``embed``.
    """
    encoder.register_load_state_dict_pre_hook(_rename_to_own)


def _rename_to_own(encoder: torch.nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    wanted = {prefix + name for name in encoder.state_dict()}
    for name in list(state):
        own = _wanted_name(name, wanted)
        if own != name:  # the state may hold both: the model's own, and that of the file, which is the one meant
            state[own] = state.pop(name)
