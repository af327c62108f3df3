"""CTC over several exits in one call."""

from __future__ import annotations

import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.model.term import ExitBatch, Term


class CTCTerm(Term):
    """CTC at every exit; see :func:`exits_ctc_loss`."""

    def __init__(self, model: ESPnetASRModel) -> None:
        super().__init__(model)
        self.blank = model.blank_id

    def forward(self, batch: ExitBatch) -> torch.Tensor:
        return exits_ctc_loss(batch.log_probs, batch.olens, batch.text, batch.text_lengths, self.blank)


def frames_needed(text: torch.Tensor, text_lengths: torch.Tensor) -> torch.Tensor:
    """Least number of frames (B,) that a CTC alignment of labels takes, (B, L), padded: labels + repeats."""
    if not text.size(1):  # a batch of utterances without a word
        return text_lengths
    repeats = (text[:, 1:] == text[:, :-1]).cumsum(dim=1)
    zero = torch.zeros_like(repeats[:, :1]) if repeats.size(1) else torch.zeros_like(text[:, :1])
    repeats = torch.cat([zero, repeats], dim=1)
    last = (text_lengths - 1).clamp(min=0)
    return text_lengths + repeats.gather(1, last[:, None])[:, 0]


def exits_ctc_loss(
    log_probs: torch.Tensor, olens: torch.Tensor, text: torch.Tensor, text_lengths: torch.Tensor, blank: int = 0
) -> torch.Tensor:
    """CTC loss of every exit (M,), from one call of ``torch.nn.functional.ctc_loss``.

    Equals ``espnet2.asr.ctc.CTC`` (``ctc_type: builtin``, ``zero_infinity: true``) exit by exit: the sum
    over the batch divided by its size.

    Args:
        log_probs: (M, B, T, V), M exits.
        olens: frames (B,), the same for every exit.
        text: labels (B, L), padded.
        text_lengths: (B,).
        blank: blank id.
    """
    labels = torch.cat([row[:length] for row, length in zip(text, text_lengths, strict=True)])
    return utterance_ctc_losses(log_probs, olens, labels, text_lengths, blank).sum(dim=1) / len(text)


def utterance_ctc_losses(
    log_probs: torch.Tensor, olens: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor, blank: int
) -> torch.Tensor:
    """CTC loss of every exit and utterance (M, B); 0 where the labels need more frames than there are.

    Args:
        log_probs: (M, B, T, V), M exits.
        olens: frames (B,), the same for every exit.
        labels: of all utterances, one after the other (sum of ``lengths``,).
        lengths: labels of each utterance (B,).
        blank: blank id.
    """
    exits, batch = log_probs.shape[:2]
    losses = torch.nn.functional.ctc_loss(
        log_probs.flatten(0, 1).transpose(0, 1).float(),
        labels.repeat(exits),
        olens.repeat(exits),
        lengths.repeat(exits),
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return losses.view(exits, batch)
