"""``encoder: early_exit_stock``: any encoder of ESPnet that is a plain list of blocks, named in the configuration.

Nothing is known of such an encoder beforehand, so it is tried out when it is made: on a small batch the blocks one
after another must give what the encoder's own ``forward`` gives to each utterance alone, and torch must be able to
count what they cost. What does not pass is refused before any training.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.tasks.asr import encoder_choices
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espnet_ee.compute import CountedShape
from espnet_ee.encoder.base import REPLACED, EarlyExitEncoder
from espnet_ee.errors import UsageError
from espnet_ee.host.signature import extend_signature

# Those without an entry of their own that the tests run; a stranger's package may ask for no other.
TESTED = ("multiconv_conformer",)
# Encoder frames of the lengths at which compute is counted: three make the parabola, the others must lie on it.
_COUNTED = (1, 2, 3, 37, 1250)


class EarlyExitStockEncoder(EarlyExitEncoder, AbsEncoder):
    """A stock encoder, computed segment by segment; what is made is a subclass of it, under its stock parameter names.

    Args:
        input_size: feature dimension.
        stock_encoder: the encoder's name in ESPnet's own table, such as ``multiconv_conformer``.
        exit_layers: 1-based numbers of the blocks that an exit follows; the last block is one of them.
        exit_norm: ``"shared"`` (one norm before every head), ``"separate"`` or ``"none"``.
        stock: every other keyword of the stock constructor; ``rel_pos_type`` is ``latest`` by default.

    Raises:
        UsageError: no such encoder, or one that cannot be driven block by block, sees the padding of a batch, or
            whose compute cannot be counted.
    """

    def __new__(
        cls,
        input_size: int = 0,
        stock_encoder: str = "",
        exit_layers: list[int] = [],  # noqa: B006 - ESPnet shows it in --print_config
        exit_norm: str = "shared",
        **stock: Any,
    ) -> EarlyExitStockEncoder:
        return super().__new__(driven_class(stock_encoder) if cls is EarlyExitStockEncoder else cls)

    def __init__(
        self,
        input_size: int,
        stock_encoder: str = "",
        exit_layers: list[int] = [],  # noqa: B006 - as above
        exit_norm: str = "shared",
        **stock: Any,
    ) -> None:
        if "rel_pos_type" in inspect.signature(type(self)).parameters:
            stock.setdefault("rel_pos_type", "latest")
        try:
            super().__init__(input_size, exit_layers, exit_norm, **stock)
        except ImportError as error:
            raise UsageError(f"encoder_conf: stock_encoder {stock_encoder} needs a package: {error}") from error
        # Of a model on the meta device (a package's sizes are checked so) there is nothing to compute.
        self._shape = None if next(self.parameters()).is_meta else self.try_out(stock_encoder)

    def shape(self) -> CountedShape:
        """What decides this encoder's compute; see :mod:`espnet_ee.compute`."""
        return self._shape

    @torch.no_grad()
    def try_out(self, name: str) -> CountedShape:
        """Computes and counts with a copy of the encoder; see the head of this file.

        Args:
            name: of the stock encoder, for messages.
        """
        trial = copy.deepcopy(self).double().eval()
        try:
            check_outputs(trial)
            return count_compute(trial.to("meta"))
        except _Unfit as error:
            reason = str(error)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(f"encoder_conf: stock_encoder {name} cannot be driven block by block: {reason}")


class _Unfit(Exception):
    """Why a stock encoder cannot be used."""


@cache
def driven_class(name: str) -> type[EarlyExitStockEncoder]:
    """The class that drives the stock encoder of that name.

    Args:
        name: in ESPnet's table of encoders.

    Raises:
        UsageError: there is none, or it has no number of blocks.
    """
    stock = encoder_choices.classes.get(name)
    if stock is None or issubclass(stock, EarlyExitEncoder):
        own = [key for key, cls in encoder_choices.classes.items() if not issubclass(cls, EarlyExitEncoder)]
        raise UsageError(f"encoder_conf: stock_encoder {name!r} is none of ESPnet's encoders: {', '.join(sorted(own))}")
    # Asked before it is made: the constructors of those without one download models of gigabytes.
    if "num_blocks" not in inspect.signature(stock.__init__).parameters:
        raise UsageError(f"encoder_conf: stock_encoder {name} cannot be driven block by block: it has no num_blocks")
    members = {"__doc__": stock.__doc__, "__module__": __name__, "stock": stock}
    made = type(f"EarlyExit{stock.__name__}", (EarlyExitStockEncoder, stock), members)
    return extend_signature(stock, without=REPLACED)(made)


def check_outputs(trial: EarlyExitStockEncoder) -> None:
    """Compares two utterances, block by block in a batch and alone, with each alone in the encoder's own ``forward``.

    Args:
        trial: a copy in double precision, in which rounding cannot pass for a difference; its parameters are changed.

    Raises:
        _Unfit: they differ.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in trial.parameters():
        # Gates start with weights of nearly zero, and would let no padding through.
        parameter += 0.1 * _noise(parameter.shape, generator)
    lengths = torch.tensor([trial.min_frames + 47, trial.min_frames + 23])
    features = _noise((2, int(lengths[0]), trial.input_size), generator)
    (outputs, _), olens, _ = trial(features, lengths)
    for row, reason in enumerate(("it is more than its blocks one after another", "its outputs depend on the padding")):
        length = lengths[row : row + 1]
        alone, frames, _ = trial.stock.forward(trial, features[row : row + 1, : int(length)], length)
        alone = alone[0] if isinstance(alone, tuple) else alone
        if frames.tolist() != [int(olens[row])]:
            raise _Unfit(reason)
        # Alone, nothing is padded and the blocks are given no mask.
        (unmasked, _), _, _ = trial(features[row : row + 1, : int(length)], length)
        for ours in (outputs[row : row + 1, : int(olens[row])], unmasked):
            if ours.shape != alone.shape or not torch.allclose(ours, alone, rtol=1e-6, atol=1e-6):
                raise _Unfit(reason)


def _noise(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.double, device="cpu")


def count_compute(trial: EarlyExitStockEncoder) -> CountedShape:
    """Counts the multiply-accumulates of an encoder's segments, without computing anything.

    Args:
        trial: a copy on the ``meta`` device.

    Raises:
        _Unfit: the counts follow neither the formula of the subsampling layer nor a parabola.
    """
    stride = 1
    for convolution in trial.front_shape()["convolutions"]:
        stride *= convolution.stride
    feature_frames = [trial.min_frames + stride * (frames - 1) for frames in _COUNTED]
    counted = [_counts(trial, frames) for frames in feature_frames]
    one, two, three = (counts for _, counts in counted[:3])
    parabolas = {
        layer: (one[layer], two[layer] - one[layer], three[layer] - 2 * two[layer] + one[layer]) for layer in trial.exit_layers
    }
    shape = CountedShape(**trial.front_shape(), counts=parabolas)
    for number, (front, blocks) in enumerate(counted):
        expected = shape.segment_macs(feature_frames[number], trial.exit_layers)
        if shape.encoder_frames(feature_frames[number]) != _COUNTED[number] or not front:
            raise _Unfit("its subsampling layer is none of ESPnet's")
        if expected != [front + blocks[layer] for layer in trial.exit_layers]:
            raise _Unfit(f"its compute for {_COUNTED[number]} frames follows no formula")
    return shape


def _counts(trial: EarlyExitStockEncoder, feature_frames: int) -> tuple[int, dict[int, int]]:
    """MACs of the subsampling layer, and those of the blocks up to every exit, for one utterance."""
    features = torch.empty(1, feature_frames, trial.input_size, dtype=torch.double, device="meta")
    # Inside fused attention the counter sees nothing. (Nor in torch's fast path, but the meta device has none.)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        state = trial.start(features, torch.tensor([feature_frames]))
        front = counter.get_total_flops() // 2
        blocks = {}
        while state.layer < trial.exit_layers[-1]:
            state = trial.advance(state).state
            blocks[state.layer] = counter.get_total_flops() // 2 - front
    return front, blocks
