"""What a model takes in: audio or stored features, and how much of it makes a frame."""

from __future__ import annotations

from espnet2.asr.espnet_model import ESPnetASRModel


def takes_audio(model: ESPnetASRModel) -> bool:
    """Whether it takes samples; otherwise an utterance is an array of features."""
    return model.frontend is not None or model.encoder.takes == "samples"


def input_width(model: ESPnetASRModel) -> int:
    """Values of a frame that comes in, of a model on features."""
    preencoder = getattr(model, "preencoder", None)
    return model.encoder.input_size if preencoder is None else preencoder.linear_out.in_features


def input_step(model: ESPnetASRModel) -> int | None:
    """Samples from one frame (or sample) of the encoder's input to the next; None: of stored features nobody says it."""
    return 1 if model.encoder.takes == "samples" else getattr(model.frontend, "hop_length", None)
