"""Span distillation: what the final exit makes of each label, wherever in the label's frames it says so.

A Kullback-Leibler divergence frame by frame is mostly about blanks. Here the frames of a label, by the final exit's best
alignment of the transcript, are one distribution: the mean over the span.
"""

from __future__ import annotations

import torch

from espnet_ee.model.distillation import DistillationTerm
from espnet_ee.model.term import ExitBatch
from espnet_ee.model.viterbi import align


class SpanDistillationTerm(DistillationTerm):
    """KL(final || exit) of the posteriors' means over the span of each label, summed over labels.

    An utterance with too few frames for its text has no alignment and teaches nothing.
    """

    def lessons(self, batch: ExitBatch) -> torch.Tensor:
        teacher = batch.log_probs[-1].detach()
        spans = align(teacher, batch.olens, batch.text, batch.text_lengths, self.blank)
        rows, frames = (spans >= 0).nonzero(as_tuple=True)
        # A label's frames follow each other, and labels are numbered in their text: a new number is a new span.
        numbers = rows * batch.text.size(1) + spans[rows, frames]
        _, span, sizes = numbers.unique_consecutive(return_inverse=True, return_counts=True)
        means = span_means(batch.log_probs[:, rows, frames].float().exp(), span, sizes)
        target, student = means[-1].detach(), means[:-1].clamp(min=torch.finfo(torch.float).tiny)
        apart = torch.nn.functional.kl_div(student.log(), target.expand_as(student), reduction="none").sum(dim=-1)
        owners = rows[sizes.cumsum(dim=0) - 1]
        return apart.new_zeros(len(apart), len(spans)).index_add(1, owners, apart)


def span_means(values: torch.Tensor, span: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Means over spans (M, S, V).

    Args:
        values: of frames (M, N, V).
        span: number of the span that each frame belongs to (N,).
        sizes: frames of each span (S,).
    """
    sums = values.new_zeros(values.size(0), len(sizes), values.size(2)).index_add(1, span, values)
    return sums / sizes[:, None]
