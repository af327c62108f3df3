"""``model: early_exit``: ESPnet's ASR model with a CTC head, or one and an attention decoder, at every exit of its encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jiwer
import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_ee.encoder.base import SegmentEncoder
from espnet_ee.errors import UsageError
from espnet_ee.host.signature import extend_signature, reject_unknown_keys
from espnet_ee.model.consistency import CopyingSpecAug
from espnet_ee.model.ctc import frames_needed
from espnet_ee.model.decoders import check_decoder, exit_decoders_of, make_decoders
from espnet_ee.model.head_choices import make_heads
from espnet_ee.model.heads import exit_heads_of
from espnet_ee.model.preencoder import check_preencoder
from espnet_ee.model.term import ExitBatch
from espnet_ee.model.terms import JointTerms
from espnet_ee.model.weights import ExitWeights
from espnet_ee.model.weights import exit_weights as resolve_weights
from espnet_ee.text import collapse, tokens_to_text

NO_POSTENCODER = "postencoder: early_exit reads its exits off the encoder alone; remove it"

# Of a model whose backbone is frozen.
_TRAINED_ALONE = ("exit_ctc.", "exit_decoders.", "exit_terms.", "ctc.", "decoder.", "encoder.exit_norms.")


@extend_signature(ESPnetASRModel, without=("interctc_weight",))
class EarlyExitASRModel(ESPnetASRModel):
    """Exits trained jointly: L = sum_m w_m L_m, L_m = CTC or 0.3 CTC + 0.7 attention (arXiv 2309.09546).

    Reports ``loss_exitNN`` for every exit, and ``cer_exitNN`` (greedy, over real frames only) when
    validating; ``ctc_too_short`` is the share of utterances with fewer frames than their labels need,
    whose loss is infinite and which therefore teach nothing.

    Args:
        stock: everything ``ESPnetASRModel`` takes; ``ctc_weight`` must be 1.0, or with decoders the share
            of CTC in ``exit_terms``.
        exit_heads: ``"separate"`` (a linear head per exit), ``"shared"`` (ESPnet's InterCTC), or what the exits below the
            final one compute before their linear layer: ``"lstm"``, ``"convolution"``.
        exit_decoders: with ``attention`` among the terms and ``decoder: transformer``: ``"separate"`` (a decoder of ``decoder_conf``
            per exit, on one embedding of the tokens) or ``"shared"`` (one for all).
        exit_weights: ``"sum"``, ``"mean"`` or a list with a weight per exit.
        exit_terms: what each exit is trained for: by term (``ctc``, ``attention``, ``cr_ctc``, ``span_distillation``,
            ``text_distillation``, ``clusters``) its weight, or a table of ``weight`` and ``warmup``; see :class:`espnet_ee.model.terms.JointTerms`.
        exit_gradients: what of the joint loss reaches the encoder: ``"full"``; ``"scaled"``: a segment gets the mean of the
            gradients of the exits from it on, not their sum; ``"rotating"``: a training step is for the final exit and one
            below, which take turns.
        exit_clusters: with ``clusters`` among the terms: how many clusters the cluster head of every exit below the final one tells
            apart; see :class:`espnet_ee.model.cluster_heads.ClusterTerm`.
        freeze_backbone: trains the exits' norms, heads and decoders alone; everything else keeps its parameters, and unlike
            under ``--freeze_param`` also its BatchNorm statistics (and its dropout is off). Add
            ``--freeze_param ctc`` to keep the final exit as it is.
    """

    def __init__(
        self,
        exit_heads: str = "separate",
        exit_decoders: str = "separate",
        exit_weights: str | list[float] = "sum",
        exit_terms: dict[str, float] = {"ctc": 1.0},  # noqa: B006 - ESPnet shows it in --print_config
        exit_gradients: str = "full",
        exit_clusters: int = 0,
        freeze_backbone: bool = False,
        **stock: Any,
    ) -> None:
        reject_unknown_keys(type(self), "model_conf", stock)
        check_parts(exit_terms, stock)
        encoder, ctc = stock["encoder"], stock["ctc"]
        report_cer = stock.get("report_cer", True)
        # The stock calculator decodes padding; ours replaces it.
        stock.update(report_cer=False, report_wer=False)
        super().__init__(**stock)
        self.report_exit_cer = report_cer
        self.exit_ctc = make_heads(exit_heads, encoder.exit_layers[:-1], ctc)
        self.exit_decoders = make_decoders(exit_decoders, encoder.exit_layers[:-1], self.decoder)
        self.exit_clusters = exit_clusters
        self.exit_terms = JointTerms(exit_terms, self)
        if exit_clusters and "clusters" not in exit_terms:
            raise UsageError(
                "model_conf: exit_clusters without their term in the loss; add exit_terms: {ctc: 1.0, clusters: 1.0}"
            )
        if self.exit_terms.copies > 1:
            self.specaug: torch.nn.Module = CopyingSpecAug(stock["specaug"], self.exit_terms.copies)
        self.exit_weights = ExitWeights(resolve_weights(exit_weights, len(encoder.exit_layers)), exit_gradients)
        encoder.mean_gradients = exit_gradients == "scaled"
        if encoder.conditioned and encoder.mean_gradients:
            raise UsageError(
                "exit_gradients: scaled: with interctc_use_conditioning a segment has more than one way up; use full"
            )
        exit_heads_of(self)  # for a conditioned encoder, whose blocks read them
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            for name, parameter in self.named_parameters():
                parameter.requires_grad = name.startswith(_TRAINED_ALONE)

    def train(self, mode: bool = True) -> EarlyExitASRModel:
        """Switches to training; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.freeze_backbone:
            self.encoder.eval()
        return self

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """The joint loss and what ESPnet's trainer reports.

        Args:
            speech: samples (B, N) or features (B, L, F).
            speech_lengths: (B,).
            text: labels (B, U), padded with ``ignore_id``.
            text_lengths: (B,).
            kwargs: ``utt_id``; not used.
        """
        utterances, copies = speech.size(0), self.exit_terms.copies if self.training else 1
        text = text[:, : text_lengths.max()]
        if copies > 1:
            speech, speech_lengths, text, text_lengths = (
                values.repeat(copies, *[1] * (values.dim() - 1)) for values in (speech, speech_lengths, text, text_lengths)
            )
        (final, below), olens = self.encode(speech, speech_lengths)
        layers, heads = self.encoder.exit_layers, exit_heads_of(self)
        hidden = [hs for _, hs in below] + [final]
        logits = torch.stack([heads.logits(layer, hs, olens) for layer, hs in zip(layers, hidden, strict=True)])
        batch = ExitBatch(layers, hidden, logits, olens, text, text_lengths, exit_decoders_of(self))
        shares = self.exit_terms(batch)
        losses = torch.stack(list(shares.values())).sum(dim=0)
        loss = (losses * self.exit_weights()).sum()
        stats = {f"loss_exit{layer:02d}": value.detach() for layer, value in zip(layers, losses, strict=True)}
        if len(shares) > 1:
            stats |= {
                f"{name}_exit{n:02d}": v.detach() for name, share in shares.items() for n, v in zip(layers, share, strict=True)
            }
        stats |= batch.stats
        stats["ctc_too_short"] = (frames_needed(text, text_lengths) > olens).float().mean()
        if self.report_exit_cer and not self.training:
            stats.update(self.exit_cers(logits, olens, text, text_lengths))
        stats["loss"] = loss.detach()
        return force_gatherable((loss, stats, utterances), loss.device)

    def exit_cers(
        self, logits: torch.Tensor, olens: torch.Tensor, text: torch.Tensor, text_lengths: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Greedy character error rate of every exit on this batch, as ``cer_exitNN``.

        Args:
            logits: (M, B, T, V).
            olens: (B,).
            text: labels (B, U).
            text_lengths: (B,).

        Returns:
            The same keys for every batch (processes that share a batch average key by key); NaN, which ESPnet leaves out of
            its means, where no reference has a word.
        """
        reference = [
            tokens_to_text([self.token_list[i] for i in row[:length]])
            for row, length in zip(text.tolist(), text_lengths.tolist(), strict=True)
        ]
        best = logits.argmax(dim=-1).tolist()
        spoken = [i for i, words in enumerate(reference) if words]  # jiwer has no rate for an empty reference
        cers = {}
        for layer, paths in zip(self.encoder.exit_layers, best, strict=True):
            hypothesis = [
                tokens_to_text([self.token_list[i] for i in collapse(path[:length], self.blank_id)])
                for path, length in zip(paths, olens.tolist(), strict=True)
            ]
            rate = jiwer.cer([reference[i] for i in spoken], [hypothesis[i] for i in spoken]) if spoken else math.nan
            cers[f"cer_exit{layer:02d}"] = logits.new_tensor(rate)
        return cers


def check_parts(exit_terms: Any, stock: Mapping[str, Any]) -> None:
    """Raises UsageError for what ESPnet's constructor takes and an early-exit model with such terms cannot be made of."""
    encoder, ctc = stock["encoder"], stock["ctc"]
    if not isinstance(encoder, SegmentEncoder):
        raise UsageError(f"encoder: model early_exit needs an early_exit_* encoder, not {type(encoder).__name__}")
    check_decoder(exit_terms, stock)
    if ctc.ctc_type != "builtin":
        raise UsageError(f"ctc_conf: early_exit needs ctc_type builtin, not {ctc.ctc_type}")
    if not ctc.reduce or not ctc.ctc_loss.zero_infinity:
        raise UsageError("ctc_conf: early_exit sums the batch, infinite losses as 0; remove reduce and zero_infinity")
    check_preencoder(stock.get("preencoder"), stock.get("frontend"))
    if stock.get("postencoder") is not None:
        raise UsageError(NO_POSTENCODER)
    for part in ("normalize", "specaug") if encoder.takes == "samples" else ():
        if stock.get(part) is not None:
            raise UsageError(
                f"{part}: {type(encoder).__name__} (early_exit_hf) takes audio, which it normalises and masks itself; "
                f"set {part}: null (of a recipe: --feats_normalize config)"
            )
