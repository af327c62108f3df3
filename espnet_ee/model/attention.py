"""Cross-entropy of an attention decoder at every exit (arXiv 2309.09546, section 3: 0.3 CTC + 0.7 attention)."""

from __future__ import annotations

import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.encoder.base import real_frames
from espnet_ee.host.compat import add_sos_eos
from espnet_ee.model.term import ExitBatch, Term


class AttentionTerm(Term):
    """What ESPnet's ``ESPnetASRModel`` trains its decoder for, at every exit: label-smoothed cross-entropy, as ``model_conf``'s
    ``lsm_weight`` and ``length_normalized_loss`` say.

    Reports ``loss_att_exitNN``, not weighted, and ``acc_exitNN``, the share of tokens that the decoder says right when it is
    given those before; the final exit's also as ``acc``, ESPnet's name.
    """

    def __init__(self, model: ESPnetASRModel) -> None:
        super().__init__(model)
        self.sos, self.eos, self.ignore_id = model.sos, model.eos, model.ignore_id
        self.criterion = model.criterion_att  # without parameters

    def forward(self, batch: ExitBatch) -> torch.Tensor:
        labels = batch.text.masked_fill(~real_frames(batch.text_lengths, batch.text), self.ignore_id)
        said, wanted = add_sos_eos(labels, self.sos, self.eos, self.ignore_id)
        real, losses = wanted != self.ignore_id, []
        for layer, hs in zip(batch.layers, batch.hidden, strict=True):
            logits, _ = batch.decoders[layer](hs, batch.olens, said, batch.text_lengths + 1)
            losses.append(self.criterion(logits, wanted))
            accuracy = ((logits.argmax(dim=-1) == wanted) & real).sum() / real.sum()
            batch.stats[f"loss_att_exit{layer:02d}"] = losses[-1].detach()
            batch.stats[f"acc_exit{layer:02d}"] = batch.stats["acc"] = accuracy
        return torch.stack(losses)
