"""Fits the weights with which exits are combined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from espnet_ee.decode.combine import combined
from espnet_ee.decode.recognizer import EarlyExitRecognizer
from espnet_ee.errors import UserError
from espnet_ee.model.loss import frames_needed
from espnet_ee.policy.fixed import FixedExitPolicy


def fit_weights(
    log_probs: torch.Tensor, olens: torch.Tensor, text: torch.Tensor, lengths: torch.Tensor, blank: int, steps: int = 60
) -> list[list[float]]:
    """Finds, for every exit, the weights that make the references most probable.

    Args:
        log_probs: of every exit (M, B, T, V).
        olens: real frames (B,).
        text: labels (B, U).
        lengths: of the labels (B,).
        blank: blank id.
        steps: of gradient descent.

    Returns:
        For every exit the weights of the exits up to it; not negative, their sum is 1.
    """
    found = []
    for number in range(1, len(log_probs) + 1):
        # Begins near the exit alone, which is the best known before the fit.
        start = torch.zeros(number)
        start[-1] = 2.0
        logits = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.2)
        for _ in range(steps if number > 1 else 0):
            mixed = combined(log_probs[:number], logits.softmax(0)).log_softmax(-1)
            loss = torch.nn.functional.ctc_loss(mixed.transpose(0, 1), text, olens, lengths, blank=blank, zero_infinity=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(logits.detach().softmax(0).tolist())
    return found


@torch.inference_mode()
def all_log_probs(model: torch.nn.Module, speech: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (M, B, T, V) of every exit, and the real frames (B,)."""
    recognizer = EarlyExitRecognizer(model, FixedExitPolicy(model.encoder.exit_layers[-1]))
    found = []
    for one in speech:  # alone: a development set in one batch may not fit into memory
        features = recognizer.features(one)[None]
        outputs = model.encoder.iter_exits(features, torch.tensor([features.size(1)]))
        found.append(torch.stack([recognizer.logits(output, [0])[0].log_softmax(dim=-1) for output in outputs], dim=1))
    padded = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)  # (B, T, M, V)
    return padded.permute(2, 0, 1, 3), torch.tensor([len(one) for one in found])


def fit_on(
    model: torch.nn.Module, speech: Sequence[np.ndarray], labels: Sequence[Sequence[int]]
) -> dict[int, dict[int, float]]:
    """Fits the weights of a model on utterances and their labels.

    Args:
        model: with an early-exit encoder.
        speech: samples (N,) or features (L, F) of every utterance.
        labels: token numbers of every reference.

    Raises:
        UserError: every reference has more labels than its utterance has frames, so that nothing can be learned.
    """
    log_probs, olens = all_log_probs(model, speech)
    text = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in labels], batch_first=True)
    lengths = torch.tensor([len(row) for row in labels])
    if (frames_needed(text, lengths) > olens).all():
        raise UserError("every reference has more labels than its utterance has frames: are these the texts of this audio?")
    # clone(): what inference mode made cannot be part of a gradient.
    found = fit_weights(log_probs.clone(), olens.clone(), text, lengths, model.blank_id)
    layers = model.encoder.exit_layers
    return {
        layer: dict(zip(layers, [round(weight, 6) for weight in weights], strict=False))
        for layer, weights in zip(layers, found, strict=True)
    }
