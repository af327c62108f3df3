"""The one module that knows that two versions of ESPnet exist (202511 and 202611).

``encoder/`` and ``model/`` import ESPnet's nets and the helpers for their differences from here.
"""

from __future__ import annotations

import copy
import math
import threading
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from espnet2.layers import log_mel

from espnet_ee.host.mel import mel_filters

try:  # ESPnet >= 202604
    from espnet2.legacy.nets.batch_beam_search import BatchBeamSearch
    from espnet2.legacy.nets.pytorch_backend import nets_utils
    from espnet2.legacy.nets.pytorch_backend.transformer import attention, embedding
    from espnet2.legacy.nets.pytorch_backend.transformer.add_sos_eos import add_sos_eos
    from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm
    from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
    from espnet2.legacy.nets.scorer_interface import BatchScorerInterface
    from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer
except ImportError:
    from espnet.nets.batch_beam_search import BatchBeamSearch
    from espnet.nets.pytorch_backend import nets_utils
    from espnet.nets.pytorch_backend.transformer import attention, embedding
    from espnet.nets.pytorch_backend.transformer.add_sos_eos import add_sos_eos
    from espnet.nets.pytorch_backend.transformer.layer_norm import LayerNorm
    from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError
    from espnet.nets.scorer_interface import BatchScorerInterface
    from espnet.nets.scorers.ctc import CTCPrefixScorer

__all__ = [  # what comes from either version
    "BatchBeamSearch",
    "BatchScorerInterface",
    "CTCPrefixScorer",
    "LayerNorm",
    "TooShortUttError",
    "add_sos_eos",
]

try:
    from espnet2.legacy.nets.pytorch_backend.conformer import convolution as _convolution

    _STOCK_MASKS_PADDING = hasattr(_convolution, "mask_padded_frames")
except ImportError:
    _STOCK_MASKS_PADDING = False

# Of an utterance without frames 202511 masks nothing.
_MASKS_EMPTY = bool(nets_utils.make_pad_mask(torch.tensor([0]), maxlen=1).all())
# Parts of the subsampling layer: their names in 202511 and in 202611.
_SUBSAMPLING_NAMES = (("embed.out.0.", "embed.out."), ("embed.out.1.", "embed.pos_enc."))


def espnet_version() -> str:
    """The installed ESPnet's version, such as ``"202511"``."""
    return version("espnet")


# --- one model in several threads, and nothing left on it -------------------------------------------------------------

# What belongs to the block that a thread is just computing: masks of its batch, the last attention map.
_call = threading.local()


class _MapOfCall:
    """ESPnet's attention stores its map on the module and reads it back: here on the thread, while its block runs."""

    @property
    def attn(self) -> torch.Tensor | None:
        owner, weights = getattr(_call, "attention", (None, None))
        return weights if owner is self else None

    @attn.setter
    def attn(self, weights: torch.Tensor | None) -> None:
        _call.attention = (self, weights)


_MOST_SCORES = 1 << 22  # of a head at once: ten minutes of audio have 225 millions


def _is_long(module: torch.nn.Module, frames: int) -> bool:
    """Whether scores are to be computed by and by. Shorter audio has ESPnet's arithmetic to the bit, and so have exports."""
    if module.training or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return frames**2 > _MOST_SCORES and not getattr(module, "use_sdpa", False) and not getattr(module, "zero_triu", False)


def _attend_by_rows(module: Any, value: torch.Tensor, frames: int, mask: torch.Tensor | None, scores_of: Any) -> torch.Tensor:
    """What ``forward_attention`` gives, a stretch of queries at a time: the scores of all would grow with the square of the length."""
    rows, parts = max(1, _MOST_SCORES // frames), []
    for first in range(0, frames, rows):
        last = min(frames, first + rows)
        own = mask if mask is None or mask.size(1) == 1 else mask[:, first:last]
        parts.append(module.forward_attention(value, scores_of(first, last) / math.sqrt(module.d_k), own))
    return torch.cat(parts, dim=1)


class _Attention(_MapOfCall, attention.MultiHeadedAttention):
    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, *more: Any, **named: Any) -> Any:
        frames = query.size(1)
        if more or named or not _is_long(self, frames):
            return super().forward(query, key, value, mask, *more, **named)
        q, k, v = self.forward_qkv(query, key, value)
        return _attend_by_rows(self, v, frames, mask, lambda first, last: q[:, :, first:last] @ k.transpose(-2, -1))


class _RelativeAttention(_MapOfCall, attention.RelPositionMultiHeadedAttention):
    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pos_emb: torch.Tensor, mask: Any) -> Any:
        frames = query.size(1)
        if not _is_long(self, frames):
            return super().forward(query, key, value, pos_emb, mask)
        q, k, v = self.forward_qkv(query, key, value)
        p = self.linear_pos(pos_emb).view(pos_emb.size(0), -1, self.h, self.d_k).permute(0, 2, 3, 1)

        def scores_of(first: int, last: int) -> torch.Tensor:
            rows = q[:, :, first:last]
            # Of the 2T-1 relative positions those that these queries have to all keys; then each row in its place.
            near = (rows + self.pos_bias_v[:, None]) @ p[..., frames - last : 2 * frames - 1 - first]
            padded = torch.nn.functional.pad(near, (1, 0)).view(*near.shape[:2], -1, last - first)
            return (rows + self.pos_bias_u[:, None]) @ k.transpose(-2, -1) + padded[:, :, 1:].view_as(near)[..., :frames]

        return _attend_by_rows(self, v, frames, mask, scores_of)


class _LegacyAttention(_MapOfCall, attention.LegacyRelPositionMultiHeadedAttention):
    pass


_ISOLATED: dict[type, Any] = {
    attention.MultiHeadedAttention: _Attention,
    attention.RelPositionMultiHeadedAttention: _RelativeAttention,
    attention.LegacyRelPositionMultiHeadedAttention: _LegacyAttention,
}


def isolate_calls(blocks: torch.nn.Module) -> None:
    """Makes a list of blocks keep nothing of a call, and see zeros where an utterance is padded.

    Stock modules, parameter names and arithmetic stay. Of their convolutions over time, ESPnet 202611 masks the input
    itself; in 202511 padded frames hold biases (of the conformer's pointwise convolution and GLU, of the norm in a
    cgMLP, of the two branches that an E-Branchformer merges), so the last real frames of an utterance would depend on
    what it is batched with.

    Args:
        blocks: each to be called by :func:`call_block`.
    """
    for part in blocks.modules():
        if type(part) in _ISOLATED:
            part.__class__ = _ISOLATED[type(part)]
            vars(part).pop("attn", None)
        elif isinstance(part, torch.nn.Conv1d) and part.kernel_size[0] > 1 and not _STOCK_MASKS_PADDING:
            part.register_forward_pre_hook(_zero_padding)


def _zero_padding(_: torch.nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    masks = getattr(_call, "masks", None)
    return arguments if masks is None else (arguments[0].masked_fill(~masks.bool(), 0.0),)


def call_block(block: torch.nn.Module, xs: Any, masks: torch.Tensor | None) -> Any:
    """Computes one of ESPnet's blocks.

    Args:
        block: of a list given to :func:`isolate_calls`.
        xs: hidden states (B, T, D), or a pair of them and relative positions (1, 2T-1, D).
        masks: True on real frames (B, 1, T), or None where every frame is real.

    Returns:
        In the form of ``xs``.
    """
    _call.masks = masks
    try:
        return block(xs, masks)[0]
    finally:
        _call.masks, _call.attention = None, (None, None)


def with_positions(embed: torch.nn.Module, frames: int) -> torch.nn.Module:
    """The subsampling layer with positions for so many frames (after it): itself, or a copy on the same parameters.

    ESPnet lets the layer's table grow in place, where another thread may be reading it.
    """
    entries = frames if has_legacy_positions(embed) else 2 * frames - 1
    if all(part.pe.size(1) >= entries for part in _position_tables(embed)):
        return embed
    shared = {id(tensor): tensor for tensor in (*embed.parameters(), *embed.buffers())}
    grown = copy.deepcopy(embed, memo=shared)
    for part in _position_tables(grown):
        part.extend_pe(part.pe.new_empty(1, 1).expand(1, entries))
    return grown


def has_legacy_positions(embed: torch.nn.Module) -> bool:
    """Whether a subsampling layer gives ESPnet's older relative positions (``rel_pos_type: legacy``)."""
    return any(isinstance(part, embedding.LegacyRelPositionalEncoding) for part in _position_tables(embed))


def legacy_positions(embed: torch.nn.Module, frames: int) -> torch.Tensor:
    """The older positions (1, T, D) of an utterance of T frames, as a fresh stock encoder gives them to it alone.

    Of short ones they count down from the end of the table, of ones longer than it from their own.
    """
    (positions,) = _position_tables(embed)
    if frames <= positions.pe.size(1):
        return positions.pe[:, :frames]
    return _sinusoids(torch.arange(frames - 1, -1, -1), positions.d_model)


def _position_tables(embed: torch.nn.Module) -> list[Any]:
    """The modules with a table ``pe`` of positions, which ``extend_pe`` lets grow."""
    return [part for part in embed.modules() if isinstance(getattr(part, "pe", None), torch.Tensor)]


def traced_embed(embed: Any, xs: torch.Tensor) -> torch.Tensor:
    """Hidden states (B, T, D) that the subsampling layer makes of (B, L, F); positions come from a formula, not its table."""
    (positions,) = _position_tables(embed)
    if isinstance(embed, torch.nn.Sequential):  # input_layer: linear
        for part in embed:
            xs = xs if part is positions else part(xs)
    else:
        flat = isinstance(embed.conv[0], torch.nn.Conv1d)
        xs = embed.conv(xs.transpose(1, 2) if flat else xs[:, None])
        xs = xs.transpose(1, 2).flatten(2)
        xs = (embed.out[0] if isinstance(embed.out, torch.nn.Sequential) else embed.out)(xs)
    if isinstance(positions, embedding.RelPositionalEncoding):
        return xs * positions.xscale
    absolute = _sinusoids(torch.arange(xs.size(1)), positions.d_model)
    if isinstance(positions, embedding.ScaledPositionalEncoding):
        return xs + positions.alpha * absolute
    return xs * positions.xscale + absolute


def traced_positions(embed: torch.nn.Module, frames: int) -> torch.Tensor | None:
    """The relative positions (1, 2T-1, D) that blocks take, from T-1 down; None where positions are added to hidden states."""
    (positions,) = _position_tables(embed)
    if not isinstance(positions, embedding.RelPositionalEncoding):
        return None
    return _sinusoids(torch.arange(frames - 1, -frames, -1), positions.d_model)


def _sinusoids(places: torch.Tensor, size: int) -> torch.Tensor:
    """(1, T, D): sines and cosines by turns, as in ESPnet's tables."""
    frequencies = torch.exp(torch.arange(0, size, 2, dtype=torch.float32) * -(math.log(10000.0) / size))
    angles = places.to(torch.float32)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]


# --- masks of padding -------------------------------------------------------------------------------------------------


def make_pad_mask(
    lengths: torch.Tensor, xs: torch.Tensor | None = None, length_dim: int = -1, maxlen: int | None = None
) -> torch.Tensor:
    """True on padding: what ESPnet's function of this name gives for a tensor of lengths, in linear time and memory.

    ESPnet's picks rows of a triangle as high as it is wide: 3.6 GB for ten minutes of 10 ms frames.

    Args:
        lengths: (B,).
        xs: of two or three dimensions; the mask gets its shape. None: (B, maxlen).
        length_dim: the dimension of ``xs`` that the lengths count.
        maxlen: without ``xs``; the largest length if None.
    """
    frames = int(lengths.max() if maxlen is None else maxlen) if xs is None else xs.size(length_dim)
    lengths = lengths.to(lengths.device if xs is None else xs.device)[:, None]
    masks = torch.arange(frames, device=lengths.device) >= lengths
    if not _MASKS_EMPTY:
        masks &= lengths > 0
    if xs is None or xs.dim() == 2:
        return masks
    return masks[:, :, None].expand_as(xs) if length_dim == 1 else masks[:, None].expand_as(xs)


def make_pad_masks_linear() -> None:
    """Lets ESPnet's frontend and normalisation, too, use :func:`make_pad_mask`."""
    nets_utils._make_pad_mask_traceable = make_pad_mask


def make_mel_filters_light() -> None:
    """Lets ESPnet's frontend make its mel filters by :func:`mel_filters`: librosa's bits, without what librosa imports."""
    log_mel.librosa = SimpleNamespace(filters=SimpleNamespace(mel=mel_filters))


# --- parameters of either version -------------------------------------------------------------------------------------


def rename_keys(state: dict[str, torch.Tensor], wanted: set[str]) -> dict[str, torch.Tensor]:
    """Gives the subsampling layer's parameters, of a checkpoint of either version, the names that the running model has."""
    return {_wanted_name(name, wanted): value for name, value in state.items()}


def _wanted_name(name: str, wanted: set[str]) -> str:
    """The name under which ``wanted`` has a parameter; as it is where it has it under neither version's."""
    if name in wanted:
        return name
    others = [name.replace(old, new) for old, new in _SUBSAMPLING_NAMES if old in name]
    others += [name.replace(new, old) for old, new in _SUBSAMPLING_NAMES if new in name]
    return next((other for other in others if other in wanted), name)


def accept_either_version(encoder: torch.nn.Module) -> None:
    """Lets an encoder load the parameters of its subsampling layer (``embed``) from either version, whoever loads them.

    ESPnet's ``--init_param`` merges a file into the model's own parameters, and its ``Speech2Text`` passes over what
    is missing. So 202511 leaves the layer of a 202611 file as it was, at random, without a word; and 202611, which
    knows the older names, drops them where its own are there, too.
    """
    encoder.register_load_state_dict_pre_hook(_rename_to_own)


def _rename_to_own(encoder: torch.nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    wanted = {prefix + name for name in encoder.state_dict()}
    for name in list(state):
        own = _wanted_name(name, wanted)
        if own != name:  # the state may hold both: the model's own, and that of the file, which is the one meant
            state[own] = state.pop(name)
