"""Cluster heads of the exits: a linear layer each that tells a frame's cluster at the final exit (DAISY, arXiv 2406.05464).

How unsure such a head is says how far the blocks so far are from what the backbone makes of a frame, without a word of text.
"""

from __future__ import annotations

import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.encoder.base import real_frames
from espnet_ee.errors import UsageError, UserError
from espnet_ee.model.term import ExitBatch, Term
from espnet_ee.values import is_whole

CENTRES = "exit_terms.terms.clusters.centres"
"""The centres' name in a checkpoint: a file with them alone goes to ``--init_param``."""
MOST_CLUSTERS = 10000


class ClusterTerm(Term):
    """Cross-entropy of every cluster head but the final exit's, which has none and whose value is 0.

    A frame's target is the centre next to its hidden state at the final exit, by Euclidean distance, without a gradient. The
    centres are the k-means of these (``tools/cluster_frames.py``) and stay as they are, so the backbone should, too
    (``freeze_backbone``). In evaluation all is 0, so that the loss that chooses the model is that of the words.

    Args:
        model: with ``exit_clusters``, their number K.
    """

    centres: torch.Tensor

    def __init__(self, model: ESPnetASRModel) -> None:
        super().__init__(model)
        layers, size, count = model.encoder.exit_layers, model.encoder.output_size(), model.exit_clusters
        if not is_whole(count, 2, MOST_CLUSTERS):
            raise UsageError(f"model_conf: exit_clusters {count!r} is no number of clusters from 2 to {MOST_CLUSTERS}")
        self.heads = torch.nn.ModuleDict({str(layer): torch.nn.Linear(size, count) for layer in layers[:-1]})
        self.register_buffer("centres", torch.zeros(count, size))

    def forward(self, batch: ExitBatch) -> torch.Tensor:
        values = batch.logits.new_zeros(len(batch.layers), dtype=torch.float)
        if not self.training:
            return values
        targets = self.targets(batch.hidden[-1], batch.olens)
        for place, layer in enumerate(batch.layers[:-1]):
            logits = self.heads[str(layer)](batch.hidden[place])
            values[place] = torch.nn.functional.cross_entropy(logits.transpose(1, 2).float(), targets)
        return values

    @torch.no_grad()
    def targets(self, final: torch.Tensor, olens: torch.Tensor) -> torch.Tensor:
        """The centre next to each frame of the final exit's hidden states (B, T, D); padding has the target -100 (B, T)."""
        if not self.centres.any():
            raise UserError(
                "model_conf: exit_terms: clusters has no centres; make them by tools/cluster_frames.py, and --init_param"
            )
        nearest = torch.cdist(final.float(), self.centres.float()[None]).argmin(dim=-1)
        return nearest.masked_fill(~real_frames(olens, final), -100)


def cluster_heads_of(model: ESPnetASRModel) -> dict[int, torch.nn.Linear]:
    """The cluster heads of a model by exit layer; none of a model that was not trained with them."""
    term = getattr(getattr(model, "exit_terms", None), "terms", {})
    return {int(layer): head for layer, head in term["clusters"].heads.items()} if "clusters" in term else {}
