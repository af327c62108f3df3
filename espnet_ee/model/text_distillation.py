"""Text distillation: what the final exit hears is a second transcript for the exits below."""

from __future__ import annotations

import torch

from espnet_ee.encoder.base import real_frames
from espnet_ee.model.ctc import utterance_ctc_losses
from espnet_ee.model.distillation import DistillationTerm
from espnet_ee.model.term import ExitBatch


class TextDistillationTerm(DistillationTerm):
    """CTC of the exits below with the greedy text of the final exit.

    While that is empty, which at the beginning it is for all utterances, an utterance teaches nothing: it would teach silence.
    """

    def lessons(self, batch: ExitBatch) -> torch.Tensor:
        labels, lengths = greedy_labels(batch.logits[-1], batch.olens, self.blank)
        losses = utterance_ctc_losses(batch.log_probs[:-1], batch.olens, labels, lengths, self.blank)
        return losses * (lengths > 0)


def greedy_labels(logits: torch.Tensor, olens: torch.Tensor, blank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best label of every real frame, repeats and blanks removed; logits (B, T, V), olens (B,).

    Returns:
        The labels of all utterances, one after the other, and how many there are of each (B,).
    """
    best = logits.argmax(dim=-1)
    says = real_frames(olens, best) & (best != blank)
    says[:, 1:] &= best[:, 1:] != best[:, :-1]
    return best[says], says.sum(dim=1)
