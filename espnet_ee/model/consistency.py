"""CR-CTC: two masked copies of every utterance, whose exits are to say the same (arXiv 2410.05101)."""

from __future__ import annotations

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.specaug.specaug import SpecAug

from espnet_ee.encoder.base import real_frames
from espnet_ee.errors import UsageError
from espnet_ee.model.term import ExitBatch, Term

COPIES = 2


class ConsistencyTerm(Term):
    """How far the exits of an utterance's two copies are apart: the mean of both Kullback-Leibler divergences.

    Each copy is drawn towards what the other says, which gets no gradient; summed over tokens and real frames. In evaluation
    there are no copies, and it is 0.
    """

    copies = COPIES

    def __init__(self, model: ESPnetASRModel) -> None:
        super().__init__(model)
        if not isinstance(model.specaug, SpecAug):
            raise UsageError("model_conf: exit_terms: cr_ctc compares two masked copies of an utterance; set specaug: specaug")

    def forward(self, batch: ExitBatch) -> torch.Tensor:
        """The batch holds the first copies of all utterances, then the second."""
        if not self.training:
            return batch.log_probs.new_zeros(len(batch.layers))
        real = real_frames(batch.olens, batch.log_probs[0])[..., None]  # (2B, T, 1)
        first, second = batch.log_probs.masked_fill(~real, 0.0).chunk(COPIES, dim=1)
        apart = (divergence(second, first) + divergence(first, second)) / 2
        # Where a frame is padding both logarithms are 0, and so is their difference.
        return apart.sum(dim=(1, 2, 3)) / first.size(1)


def divergence(target: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Summands of KL(target || prediction), both as logarithms, of any shape; the target gets no gradient."""
    target = target.detach()
    return target.exp() * (target - log_probs)


class CopyingSpecAug(torch.nn.Module):
    """For a batch that holds every utterance several times: one time warp for all copies, then masks of each copy's own.

    Args:
        specaug: ESPnet's, with its settings.
        copies: how many; the batch is the utterances, then the utterances again.
    """

    def __init__(self, specaug: SpecAug, copies: int) -> None:
        super().__init__()
        self.specaug, self.copies = specaug, copies

    def forward(self, x: torch.Tensor, x_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks features (copies * B, L, F) of lengths (copies * B,)."""
        specaug = self.specaug
        x, x_lengths = x.chunk(self.copies)[0], x_lengths.chunk(self.copies)[0]
        if specaug.time_warp is not None:
            x, x_lengths = specaug.time_warp(x, x_lengths)
        x, x_lengths = x.repeat(self.copies, 1, 1), x_lengths.repeat(self.copies)
        for mask in (specaug.freq_mask, specaug.time_mask):
            if mask is not None:
                x, x_lengths = mask(x, x_lengths)
        return x, x_lengths
