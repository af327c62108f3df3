"""The layer loop of an early-exit encoder: start, advance, stop.

``EarlyExitEncoder`` owns the loop for every backbone; a backbone's file only says how it embeds its
input. Nothing above the exit that was asked for is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from espnet_ee.errors import UsageError
from espnet_ee.plugin.compat import LayerNorm


@dataclass(frozen=True)
class EncoderState:
    """Where a batch stands between two segments.

    Attributes:
        xs: hidden states (B, T, D).
        pos_emb: relative positional embedding (1, 2T-1, D), or None where positions are added to xs.
        masks: True on real frames (B, 1, T).
        olens: real frames per utterance (B,).
        layer: number of blocks already computed.
    """

    xs: torch.Tensor
    pos_emb: torch.Tensor | None
    masks: torch.Tensor
    olens: torch.Tensor
    layer: int = 0

    def select(self, indices: Sequence[int] | torch.Tensor) -> EncoderState:
        """Keeps only some utterances, so that the ones that are finished cost nothing more.

        Frames that are padding for all the kept utterances go, too.

        Args:
            indices: rows of the batch to keep, in the wanted order; at least one.
        """
        rows = torch.as_tensor(indices, device=self.xs.device, dtype=torch.long)
        olens = self.olens[rows]
        frames, longest = self.xs.size(1), int(olens.max())
        cut = frames - longest
        pos_emb = self.pos_emb
        if pos_emb is not None and cut:
            # The embedding runs from distance T-1 to -(T-1): a shorter batch needs the middle.
            pos_emb = pos_emb[:, cut : pos_emb.size(1) - cut]
        return replace(
            self,
            xs=self.xs[rows, :longest],
            pos_emb=pos_emb,
            masks=self.masks[rows, :, :longest],
            olens=olens,
        )


@dataclass(frozen=True)
class ExitOutput:
    """What one exit gives.

    Attributes:
        layer: 1-based number of the block the exit follows.
        hs: normalised hidden states for the exit's head (B, T, D).
        olens: real frames per utterance (B,).
        state: from where to go on to the next exit.
    """

    layer: int
    hs: torch.Tensor
    olens: torch.Tensor
    state: EncoderState


class EarlyExitEncoder:
    """Mixin before an ESPnet encoder class that has a plain list of blocks ``self.encoders``.

    Subclasses implement :meth:`start`. The stock parameters keep their stock names.
    """

    exit_layers: tuple[int, ...]

    def start(self, xs_pad: torch.Tensor, ilens: torch.Tensor) -> EncoderState:
        """Embeds the input; no block has been computed yet.

        Args:
            xs_pad: features (B, L, input_size).
            ilens: real feature frames per utterance (B,).
        """
        raise NotImplementedError

    def advance(self, state: EncoderState) -> ExitOutput:
        """Computes the blocks up to the next exit, and no more.

        Args:
            state: from :meth:`start` or from the previous :class:`ExitOutput`.
        """
        layer = next(exit_layer for exit_layer in self.exit_layers if exit_layer > state.layer)
        xs = state.xs if state.pos_emb is None else (state.xs, state.pos_emb)
        masks = state.masks
        for block in self.encoders[state.layer : layer]:
            xs, masks = block(xs, masks)
        hidden = xs if state.pos_emb is None else xs[0]
        state = replace(state, xs=hidden, layer=layer)
        return ExitOutput(layer, self.normalize_exit(layer, hidden), state.olens, state)

    def iter_exits(self, xs_pad: torch.Tensor, ilens: torch.Tensor) -> Iterator[ExitOutput]:
        """Yields the exits from the first to the final one; each is computed when it is asked for.

        Args:
            xs_pad: features (B, L, input_size).
            ilens: real feature frames per utterance (B,).
        """
        state = self.start(xs_pad, ilens)
        while state.layer < self.exit_layers[-1]:
            output = self.advance(state)
            yield output
            state = output.state

    def normalize_exit(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The norm between a block and the head of its exit (B, T, D) -> (B, T, D)."""
        if not self.normalize_before:
            return hidden
        norm = self.exit_norms[str(layer)] if str(layer) in self.exit_norms else self.after_norm
        return norm(hidden)

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        prev_states: torch.Tensor | None = None,
        ctc: torch.nn.Module | None = None,
    ) -> tuple[tuple[torch.Tensor, list[tuple[int, torch.Tensor]]], torch.Tensor, None]:
        """All exits, in the form of ESPnet's InterCTC (``ESPnetASRModel.encode``).

        Args:
            xs_pad: features (B, L, input_size).
            ilens: real feature frames per utterance (B,).
            prev_states: not used; ESPnet's signature.
            ctc: not used; ESPnet's signature.

        Returns:
            ``(final output (B, T, D), [(layer, output (B, T, D)) of the exits below]), olens (B,), None``
        """
        outputs = list(self.iter_exits(xs_pad, ilens))
        below = [(output.layer, output.hs) for output in outputs[:-1]]
        return (outputs[-1].hs, below), outputs[-1].olens, None

    def add_exit_norms(self, exit_norm: str) -> None:
        """Makes the norms of the exits below the final one, which keeps the stock ``after_norm``.

        Args:
            exit_norm: ``"shared"`` (all exits use ``after_norm``, as ESPnet's InterCTC) or
                ``"separate"`` (a norm per exit).
        """
        if exit_norm not in ("shared", "separate"):
            raise UsageError(f"encoder_conf: exit_norm is {exit_norm!r}; it may be shared or separate")
        own = self.exit_layers[:-1] if exit_norm == "separate" and self.normalize_before else ()
        self.exit_norms = torch.nn.ModuleDict({str(layer): LayerNorm(self.output_size()) for layer in own})


def check_exit_layers(exit_layers: Sequence[int], num_blocks: int) -> tuple[int, ...]:
    """Returns the exit layers as a tuple when they fit the encoder.

    Args:
        exit_layers: 1-based block numbers, rising; the last block must be among them.
        num_blocks: blocks of the encoder.

    Raises:
        UsageError: not whole numbers, not rising, beyond the last block, or without the last block.
    """
    layers = tuple(exit_layers)
    if not layers or any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        raise UsageError(f"encoder_conf: exit_layers is {exit_layers!r}; give block numbers such as [2, 4, {num_blocks}]")
    if any(a >= b for a, b in zip(layers, layers[1:], strict=False)) or layers[0] < 1:
        raise UsageError(f"encoder_conf: exit_layers {list(layers)} must rise, from 1 on")
    if layers[-1] > num_blocks:
        raise UsageError(
            f"encoder_conf: exit layer {layers[-1]} is beyond the last block; num_blocks is {num_blocks}"
        )
    if layers[-1] != num_blocks:
        raise UsageError(
            f"encoder_conf: exit_layers {list(layers)} lack the last block; add {num_blocks} or lower num_blocks"
        )
    return layers


def strided_lengths(lengths: torch.Tensor, convolutions: Sequence[torch.nn.Module]) -> torch.Tensor:
    """Frames left of each utterance after a stack of convolutions over time, from its own length alone.

    Args:
        lengths: input frames (B,).
        convolutions: unpadded Conv1d or Conv2d modules, time being the first convolved axis.
    """
    for convolution in convolutions:
        kernel, stride = convolution.kernel_size[0], convolution.stride[0]
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths
