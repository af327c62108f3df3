"""What every engine asks of an utterance. Neither torch nor ESPnet."""

from __future__ import annotations

import numpy as np

from espnet_ee.data.audio import check_scale
from espnet_ee.errors import UserError


def check_utterance(speech: np.ndarray, dimensions: int | None) -> None:
    """Raises UserError for what no engine can recognise.

    Args:
        speech: what should be samples (N,), or features (L, F).
        dimensions: F of a model of extracted features; None for one that takes audio.
    """
    if not isinstance(speech, np.ndarray) or isinstance(speech, np.ma.MaskedArray):
        raise UserError(f"an utterance is an array of samples, not {type(speech).__name__}; transcribe() takes files")
    if dimensions is None and speech.ndim != 1:
        raise UserError("the model takes audio, not features: give samples (a wav.scp, and no feats.scp)")
    if dimensions is not None and (speech.ndim != 2 or speech.shape[1] != dimensions):
        raise UserError(
            f"the model takes stored features of {dimensions} dimensions, not an array of {speech.shape}: give such (a feats.scp), or "
            "make it a model on audio (espnet-ee raw-audio)"
        )
    if len(speech) == 0:
        raise UserError("an utterance without samples cannot be recognised; leave it out")
    if not np.issubdtype(speech.dtype, np.floating):
        raise UserError(f"samples must be floats in [-1, 1], not {speech.dtype}; transcribe(samples, rate) scales integers")
    if not np.isfinite(speech).all():
        raise UserError("the audio holds values that are not finite; repair or drop it")
    if dimensions is None:
        check_scale(speech)
