"""What the terms share by which the final exit teaches the exits below it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.errors import UsageError
from espnet_ee.model.term import ExitBatch, Term


class DistillationTerm(Term, ABC):
    """The final exit teaches and gets no gradient; its own value is 0.

    In evaluation all is 0, so that the loss that chooses the model is that of the words, with this term and without.
    """

    def __init__(self, model: ESPnetASRModel) -> None:
        super().__init__(model)
        self.blank = model.blank_id
        if len(model.encoder.exit_layers) == 1:
            raise UsageError("model_conf: exit_terms: the one exit has none below it to teach; remove the distillation")

    def forward(self, batch: ExitBatch) -> torch.Tensor:
        values = batch.log_probs.new_zeros(len(batch.layers), dtype=torch.float)
        if self.training:
            values[:-1] = self.lessons(batch).sum(dim=1) / len(batch.olens)
        return values

    @abstractmethod
    def lessons(self, batch: ExitBatch) -> torch.Tensor:
        """What each exit below the final one lacks, by utterance (M-1, B)."""
