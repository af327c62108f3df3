"""Attention decoders of the exits: one of its own for each, or one for all.

The final exit's decoder is ESPnet's own ``model.decoder``, under its stock name, so that stock tools find it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.errors import UsageError
from espnet_ee.host.compat import isolate_calls
from espnet_ee.model.terms import read_schedule
from espnet_ee.values import is_number

SEPARATE, SHARED = "separate", "shared"
TERM = "attention"
_TABLE = "exit_terms: {ctc: 0.3, attention: 0.7}"


def check_decoder(terms: Any, stock: Mapping[str, Any]) -> None:
    """Checks that terms of the loss, CTC's weight and the decoder are those of one model.

    Args:
        terms: ``model_conf: exit_terms``.
        stock: what ESPnet's constructor is given.

    Raises:
        UsageError: a decoder is wanted and not there, or of another kind; or ``ctc_weight``, by which ESPnet's tools see whether
            a model has a decoder, is not the share of CTC among the two.
    """
    weight, decoder = stock.get("ctc_weight", 0.5), stock.get("decoder")
    if not is_number(weight):
        raise UsageError(f"model_conf: ctc_weight {weight!r} is no number; write 1.0, or 3.0e-1")
    if not isinstance(terms, Mapping) or TERM not in terms:
        if weight != 1.0:
            raise UsageError(
                f"model_conf: ctc_weight {weight} without a decoder's term in the loss; for CTC alone set ctc_weight: 1.0, with "
                f"decoders at the exits {_TABLE}"
            )
        return
    if "ctc" not in terms:
        raise UsageError(f"model_conf: exit_terms: {TERM} without ctc: exits are read by their CTC heads, too; set {_TABLE}")
    if type(decoder) is not TransformerDecoder:
        kind = "none" if decoder is None else type(decoder).__name__
        raise UsageError(f"decoder: exit_terms: {TERM} takes decoder: transformer and its decoder_conf, and there is {kind}")
    ctc, attention = (read_schedule(name, terms[name]).weight for name in ("ctc", TERM))
    if not math.isclose(weight, ctc / (ctc + attention), abs_tol=1e-3):
        share = round(ctc / (ctc + attention), 4)
        raise UsageError(
            f"model_conf: ctc_weight {weight}, where exit_terms gives CTC a share of {share}; set ctc_weight: {share}"
        )
    if stock.get("lang_token_id", -1) != -1:
        raise UsageError("model_conf: lang_token_id: exits' decoders begin with <sos> alone; remove it")


def has_decoders(config: Mapping[str, Any]) -> bool:
    """Whether the model of a training's configuration has attention decoders at its exits."""
    terms = (config.get("model_conf") or {}).get("exit_terms")
    return isinstance(terms, Mapping) and TERM in terms


def make_decoders(kind: str, layers: Sequence[int], decoder: torch.nn.Module | None) -> torch.nn.ModuleDict:
    """Makes the decoders of the exits below the final one.

    Args:
        kind: ``separate``, or ``shared``: none, since the final exit's serves all.
        layers: exit layers without the final one.
        decoder: the final exit's; None: the model has CTC heads alone. It no longer keeps anything of a call.

    Raises:
        UsageError: unknown kind, or one decoder for all where there is none.
    """
    if kind not in (SEPARATE, SHARED):
        raise UsageError(f"model_conf: exit_decoders {kind!r} is not one of {SEPARATE}, {SHARED}")
    if decoder is None:
        if kind == SHARED:
            raise UsageError(f"model_conf: exit_decoders: {SHARED} without decoders; add {_TABLE}, or remove it")
        return torch.nn.ModuleDict()
    isolate_calls(decoder)
    return torch.nn.ModuleDict({} if kind == SHARED else {str(layer): _another(decoder) for layer in layers})


def _another(decoder: Any) -> torch.nn.Module:
    """A decoder like this one, its parameters drawn anew; the embedding of the tokens is the same."""
    embedding = decoder.embed[0]
    made: torch.nn.Module = copy.deepcopy(decoder, {id(embedding): embedding})
    for part in made.modules():
        reset = getattr(part, "reset_parameters", None)
        if reset is not None and part is not embedding:
            reset()
    return made


def exit_decoders_of(model: ESPnetASRModel) -> dict[int, torch.nn.Module]:
    """The decoders of a model of ours by exit layer; none of a model of CTC heads alone.

    A stock model's one decoder was trained on the last block: it is none of the exits'.
    """
    own, final = getattr(model, "exit_decoders", None), getattr(model, "decoder", None)
    if own is None or final is None:
        return {}
    return {layer: own[str(layer)] if str(layer) in own else final for layer in model.encoder.exit_layers}
