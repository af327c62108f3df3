"""A model of ESPnet as the engine of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from espnet_ee.decode.torch_session import TorchSession, TorchState, in_memory, reduce_frames
from espnet_ee.encoder.base import EncoderState, ExitOutput
from espnet_ee.encoder.chunk import chunk_of
from espnet_ee.encoder.fast_conformer import EarlyExitFastConformerEncoder
from espnet_ee.errors import UsageError, UserError
from espnet_ee.frontend.kaldi_fbank import KaldiFbank
from espnet_ee.model.heads import LinearHead
from espnet_ee.policy.frames import Frames

_MARGIN = 3  # frames of features: what a frame reaches before its place, and what comes back in reverse at the end


class TorchStreamSession(TorchSession):
    """Computes a chunk-trained model by and by; see :class:`espnet_ee.decode.stream.StreamSession`.

    Args:
        model: as :class:`TorchSession` takes it; not changed, and in use elsewhere at will.
        sample_rate: of the audio, in Hz.
        chunk_ms: milliseconds of a chunk.
        exit_layer: of the shallow exit; None: the first.

    Raises:
        UserError: the model cannot stream, or not so.
    """

    def __init__(self, model: Any, sample_rate: int, chunk_ms: int, exit_layer: int | None = None) -> None:
        super().__init__(model, sample_rate)
        limits, step = self.encoder.chunk_limits, self.encoder.chunk_step
        self.chunk = chunk_of(limits, step, self.frame_seconds, chunk_ms)
        self.fast = cast(EarlyExitFastConformerEncoder, self.encoder)  # no other is trained for chunks
        self.exit_layer = self.exit_layers[0] if exit_layer is None else exit_layer
        self._check()

    def _check(self) -> None:
        if not isinstance(self.model.frontend, KaldiFbank):
            raise UserError("the features of this model cannot stream; train one with frontend: kaldi_fbank")
        self.frontend = self.model.frontend
        if type(self.model.normalize).__name__ not in ("NoneType", "GlobalMVN"):
            raise UserError(
                "the model normalises each utterance by its own mean, which nobody knows before its end, so it cannot stream; "
                "train one with --feats_normalize global_mvn"
            )
        half = self.fast.half_rate
        possible = [layer for layer in self.exit_layers if half is None or layer < half[0]]
        if self.exit_layer not in possible:
            raise UsageError(
                f"partial texts of exit {self.exit_layer}: this model gives those of {', '.join(map(str, possible)) or 'none'}"
            )

    def final_samples(self, frames: int) -> int:
        """See :class:`espnet_ee.decode.stream.StreamSession`."""
        return self.frontend.final_samples(self.feature_frames(frames))

    def frames_of(self, samples: int) -> int:
        """Likewise; what is too short for a frame is padded to one, as whole utterances are."""
        return max(1, int(self.encoder.frames_of(self.frontend.frames_of(torch.tensor([samples])))[0]))

    def feature_frames(self, frames: int) -> int:
        """Frames of features that just make so many of the encoder's."""
        return (frames - 1) * self.encoder.stride + self.encoder.min_frames

    def new_stretch(self) -> TorchStretch:
        """The beginning of a stretch."""
        return TorchStretch(self)

    def window(self, samples: np.ndarray, first: int, last: int) -> torch.Tensor:
        """Normalised features (1, L, F), from the ``first`` to before the ``last``, of a stretch's samples."""
        start = max(0, first - _MARGIN)
        piece = torch.tensor(samples[start * self.frontend.hop_length : self.frontend.final_samples(last)], device=self.device)
        features, lengths = self.model._extract_feats(piece[None], torch.tensor([len(piece)], device=self.device))
        if self.model.normalize is not None:
            features, _ = self.model.normalize(features, lengths)
        features = features[:, first - start : last - start]
        return torch.nn.functional.pad(features, (0, 0, 0, last - first - features.size(1)))


class TorchStretch:
    """See :class:`espnet_ee.decode.stream.Stretch`."""

    def __init__(self, session: TorchStreamSession) -> None:
        self.session, self.frames = session, 0
        self._caches = [session.fast.new_cache() for _ in range(session.exit_layer)]
        self._hidden: dict[int, list[torch.Tensor]] = {
            layer: [] for layer in session.exit_layers if layer <= session.exit_layer
        }
        self._readings: list[Frames] = []

    @in_memory
    @torch.inference_mode()
    def advance(self, samples: np.ndarray, frames: int) -> Frames:
        """Computes the next frames up to the shallow exit."""
        session, first = self.session, self.frames
        start = max(0, first * session.fast.stride - session.fast.look_back)
        features = session.window(samples, start, session.feature_frames(frames))
        hidden = session.fast.stream_embed(features) if first else session.fast.embed_features(features)
        for number, cache in enumerate(self._caches, 1):
            hidden = session.fast.stream_block(number, hidden, first, cache)
            if number in self._hidden:
                self._hidden[number].append(hidden)
        self.frames = frames
        return self._read()

    def _read(self) -> Frames:
        """What the shallow exit says of all frames. A linear head reads the new ones alone, another begins anew."""
        layer, kept = self.session.exit_layer, self._hidden[self.session.exit_layer]
        if not isinstance(self.session.heads.by_layer[layer], LinearHead):
            kept[:], self._readings = [torch.cat(kept, dim=1)], []
        hidden = kept[-1]
        logits = self.session.heads.logits(layer, hidden, torch.tensor([hidden.size(1)], device=hidden.device))
        self._readings = [joined([*self._readings, *reduce_frames(logits, [hidden.size(1)])])]
        return self._readings[0]

    @in_memory
    @torch.inference_mode()
    def states(self) -> Sequence[TorchState]:
        """Where the stretch stands at each exit up to the shallow one, under the chunk mask, as an utterance would."""
        session, states = self.session, []
        for layer, parts in self._hidden.items():
            hidden = torch.cat(parts, dim=1)
            olens = torch.tensor([self.frames], device=hidden.device)
            state = EncoderState(hidden, olens, session.fast.chunked_carry(hidden, olens, session.chunk), layer)
            output = ExitOutput(layer, hidden, olens, state)
            states.append(TorchState(state, (session.feature_frames(self.frames),), output))
        return states

    @property
    def size(self) -> int:
        """Numbers that are held."""
        hidden = sum(part.numel() for parts in self._hidden.values() for part in parts)
        return hidden + sum(cache.size for cache in self._caches)


def joined(parts: Sequence[Frames]) -> Frames:
    """Frames one after the other, without what only somebody asks for."""
    names = ("labels", "log_confidence", "entropy")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Frames(vocabulary=parts[0].vocabulary, **arrays)
