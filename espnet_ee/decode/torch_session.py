"""A model of ESPnet as the engine of the loop that stops."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from espnet_ee.compute import StepMacs
from espnet_ee.decode.attention_search import AttentionSearch, count_step
from espnet_ee.decode.session import OutOfMemoryError, UtteranceError, check_utterance, usable_threads
from espnet_ee.encoder.base import EncoderState, ExitOutput, SegmentEncoder
from espnet_ee.encoder.chunk import chunk_of
from espnet_ee.errors import UserError
from espnet_ee.model.cluster_heads import cluster_heads_of
from espnet_ee.model.decoders import exit_decoders_of
from espnet_ee.model.heads import exit_heads_of, mac_table
from espnet_ee.model.inputs import input_step, input_width, takes_audio
from espnet_ee.model.preencoder import check_preencoder
from espnet_ee.policy.attending import AttentionConfig
from espnet_ee.policy.frames import Frames
from espnet_ee.search.joint import JointTexts
from espnet_ee.text import token_type_of

P = ParamSpec("P")
Result = TypeVar("Result")
Reduced = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of every real frame, (T,) each: best token, its log-probability, entropy."""


@dataclass(frozen=True)
class TorchState:
    """Where a batch stands.

    Attributes:
        encoder: from where to go on.
        feature_frames: length of each utterance's features.
        output: the exit that was reached; None before the first.
    """

    encoder: EncoderState
    feature_frames: tuple[int, ...]
    output: ExitOutput | None = None

    @property
    def layer(self) -> int:
        """Blocks computed so far."""
        return self.encoder.layer


def in_memory(method: Callable[P, Result]) -> Callable[P, Result]:
    """Tells an allocation that failed, which torch has three ways to say, from a bug."""

    @functools.wraps(method)
    def guarded(*arguments: P.args, **named: P.kwargs) -> Result:
        try:
            return method(*arguments, **named)
        except (MemoryError, torch.OutOfMemoryError):
            pass
        except RuntimeError as error:
            if "DefaultCPUAllocator" not in str(error):
                raise
        raise OutOfMemoryError("does not fit into memory; decode fewer at once (--batch_size), or cut the audio")

    return guarded


class TorchSession:
    """Computes a torch model segment by segment; see :class:`espnet_ee.decode.session.ExitSession`.

    Args:
        model: an ESPnet ASR model whose encoder is an early-exit encoder (``model: early_exit``, or the stock
            ``espnet`` model, whose one CTC head then serves every exit).
        sample_rate: of the audio it takes, in Hz; without it words have no times.

    Raises:
        UserError: the model's exits cannot be read one by one (a postencoder, a preencoder that mixes frames, no CTC head).
    """

    def __init__(self, model: Any, sample_rate: int | None = None) -> None:
        _check_readable(model)
        self.model = model.eval()
        self.encoder: SegmentEncoder = model.encoder
        self.heads, self.macs, self.decoders = exit_heads_of(model), mac_table(model), exit_decoders_of(model)
        self.clusters = cluster_heads_of(model)
        self.exit_layers: tuple[int, ...] = self.encoder.exit_layers
        self.blank: int = model.blank_id
        self.tokens: Sequence[str] = tuple(model.token_list)
        self.token_type: str = getattr(model, "token_type", None) or token_type_of(self.tokens)
        self.device = next(model.parameters()).device
        self.sample_rate = sample_rate
        self.frame_seconds = self._frame_seconds(sample_rate)

    def use_threads(self, count: int) -> None:
        """Sets torch's threads, for the whole process; see :func:`espnet_ee.decode.session.usable_threads`."""
        torch.set_num_threads(usable_threads(count))

    def use_chunk(self, milliseconds: int | None, sample_rate: int) -> None:
        """Lets a frame see its chunk of so many milliseconds, and some frames before it, as in a stream; None: the whole utterance.

        Raises:
            UserError: the model was not trained for chunks, or has none of this length.
        """
        encoder, seconds = self.encoder, self._frame_seconds(sample_rate)
        limits, step = encoder.chunk_limits, encoder.chunk_step
        encoder.chunk = None if milliseconds is None else chunk_of(limits, step, seconds, milliseconds)

    def _frame_seconds(self, sample_rate: int | None) -> float | None:
        hop = input_step(self.model)
        return self.macs.stride * hop / sample_rate if hop and sample_rate else None

    @in_memory
    @torch.inference_mode()
    def start(self, batch: Sequence[np.ndarray]) -> TorchState:
        """Features, one utterance at a time (the STFT's last frames would otherwise see the batch's padding), then embedded."""
        features = []
        for place, speech in enumerate(batch):
            try:
                features.append(self.features(speech))
            except UserError as error:
                raise UtteranceError(str(error), place) from None
        lengths = tuple(len(frames) for frames in features)
        padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        return TorchState(self.encoder.start(padded, torch.tensor(lengths, device=padded.device)), lengths)

    @in_memory
    @torch.inference_mode()
    def advance(self, state: TorchState) -> TorchState:
        """Computes the blocks up to the next exit."""
        output = self.encoder.advance(state.encoder)
        return replace(state, encoder=output.state, output=output)

    @in_memory
    @torch.inference_mode()
    def read(self, state: TorchState, places: Sequence[int], want: frozenset[str] = frozenset()) -> list[Frames]:
        """The exit's frames for some rows of the batch."""
        output = state.output
        assert output is not None, "no segment was computed yet"
        if output.logits is None:
            logits = self.heads.logits(output.layer, output.hs[places], output.olens[places])
        else:
            logits = output.logits[places]
        lengths = output.olens[places].tolist()
        frames = reduce_frames(logits, lengths)
        if "cluster_entropy" in want and output.layer in self.clusters:
            said = reduce_frames(self.clusters[output.layer](output.hs[places]), lengths)
            frames = [replace(exit_, cluster_entropy=sure.entropy) for exit_, sure in zip(frames, said, strict=True)]
        if "log_probs" not in want:
            return frames
        tables = logits.log_softmax(dim=-1)
        return [
            replace(exit_, log_probs=table[:length].cpu().numpy())
            for exit_, table, length in zip(frames, tables, lengths, strict=True)
        ]

    @cached_property
    def step(self) -> StepMacs:
        """What a step of an attention decoder costs; the exits' are alike."""
        return count_step(next(iter(self.decoders.values())), self.encoder.output_size())

    def require_decoders(self) -> None:
        """Raises UserError for a model of CTC heads alone."""
        if not self.decoders:
            raise UserError(
                "search: kind attention: the model's exits have no attention decoders; search with kind: greedy or beam, or train "
                "a model with exit_terms: {ctc: 0.3, attention: 0.7}"
            )

    @in_memory
    @torch.inference_mode()
    def attend(self, state: TorchState, place: int, frames: Frames, config: AttentionConfig) -> JointTexts:
        """The texts that the exit's decoder and head say together of one row of the batch."""
        output = state.output
        assert output is not None and frames.log_probs is not None, "no exit was read with its log-probabilities"
        hidden = output.hs[place, : len(frames.labels)]
        log_probs = torch.from_numpy(frames.log_probs).to(hidden)
        return AttentionSearch(self.model, config, self.step)(self.decoders[output.layer], hidden, log_probs)

    @in_memory
    @torch.inference_mode()
    def select(self, state: TorchState, places: Sequence[int]) -> TorchState:
        """Keeps some rows; what the exit gave is let go."""
        return TorchState(state.encoder.select(places), tuple(state.feature_frames[place] for place in places))

    def features(self, speech: np.ndarray) -> torch.Tensor:
        """Normalised features (L, F) of one utterance, zero-padded to the least length the encoder takes."""
        check_utterance(speech, None if takes_audio(self.model) else input_width(self.model))
        samples = torch.tensor(self.at_volume(speech), dtype=torch.float32, device=self.device)[None]
        if samples.dim() == 2:
            # The STFT reflects half a window at both ends: shorter audio cannot be reflected.
            stft = getattr(self.model.frontend, "stft", None)
            least = 1 if stft is None else stft.n_fft // 2 + 1
            samples = torch.nn.functional.pad(samples, (0, max(0, least - samples.size(1))))
        lengths = torch.tensor([samples.size(1)], device=self.device)
        features, lengths = self.model._extract_feats(samples, lengths)
        if self.model.normalize is not None:
            features, lengths = self.model.normalize(features, lengths.clamp(min=1))  # of no frame there is no mean
        if getattr(self.model, "preencoder", None) is not None:
            features, lengths = self.model.preencoder(features, lengths)
        missing = max(0, self.encoder.min_frames - features.size(1))
        return torch.nn.functional.pad(features[0], (0, 0) * (features.dim() - 2) + (0, missing))

    def at_volume(self, speech: np.ndarray) -> np.ndarray:
        """The utterance with the peak of the training's utterances, where its preprocessor has set one (speech_volume_normalize)."""
        volume: float | None = getattr(self.model, "speech_volume", None)
        if volume is None or not (peak := np.abs(speech).max()):
            return speech
        return speech.astype(np.float32) * volume / np.float32(peak)


def _check_readable(model: Any) -> None:
    """Refuses a model with parts that would be passed over: only frontend, normalisation, a linear layer, encoder and heads are."""
    check_preencoder(getattr(model, "preencoder", None), model.frontend)
    if getattr(model, "postencoder", None) is not None:
        raise UserError("the model has a postencoder, through which no exit can be read; train one with postencoder: null")
    if getattr(model, "ctc", None) is None:
        raise UserError("the model has no CTC head (ctc_weight: 0.0), so its exits cannot be read; train one with CTC")


def reduce_frames(logits: torch.Tensor, lengths: Sequence[int]) -> list[Frames]:
    """Reduces what a head gives to a few numbers per frame.

    Args:
        logits: (B, T, V), not normalised (log-probabilities are logits, too).
        lengths: real frames of each utterance (B,); what lies behind them is not looked at.
    """
    reduced = (_reduce if logits.device.type == "cpu" else _reduce_on_device)(logits, lengths)
    return [Frames(*numbers, logits.size(-1)) for numbers in reduced]


def _reduce(logits: torch.Tensor, lengths: Sequence[int]) -> Iterator[Reduced]:
    """Reduces (B, T, V) on the CPU, where NumPy takes less than half of torch's time.

    -sum p log p = log Z - sum p z of the logits z, and log Z = z_best - log p_best: no second exponential, no logarithm
    but one per frame.
    """
    scores, probabilities = logits.numpy(), logits.softmax(dim=-1).numpy()
    for row, frames in enumerate(lengths):
        z, p = scores[row, :frames], probabilities[row, :frames]
        labels = z.argmax(axis=-1)
        best = np.arange(frames), labels
        sure, highest = p[best], z[best]
        with np.errstate(invalid="ignore"):  # 0 * -inf: see below
            mean = np.vecdot(p, z)
        if math.isnan(np.add.reduce(mean)):
            # A token without any probability adds 0 to the entropy, not 0 * -inf: rare, so looked for afterwards.
            mean = np.vecdot(p, np.maximum(z, np.finfo(z.dtype).min))
        log_sure = np.log(sure)
        yield labels, log_sure, highest - mean - log_sure


def _reduce_on_device(logits: torch.Tensor, lengths: Sequence[int]) -> Iterator[Reduced]:
    """Reduces (B, T, V) where it lies: only three numbers per frame are copied, once for the batch."""
    probabilities = logits.softmax(dim=-1)
    highest, path = logits.max(dim=-1)
    sure = probabilities.gather(-1, path.unsqueeze(-1)).squeeze(-1)
    mean = (probabilities * logits.clamp(min=torch.finfo(logits.dtype).min)).sum(dim=-1)
    log_sure = sure.log()
    reduced = [values.cpu().numpy() for values in (path, log_sure, highest - mean - log_sure)]
    for row, frames in enumerate(lengths):
        labels, log_row, entropy = (values[row, :frames] for values in reduced)
        yield labels, log_row, entropy
