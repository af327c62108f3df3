"""The recogniser that stops: one segment at a time, per utterance, also inside a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from espnet_ee.decode.greedy import read_frames
from espnet_ee.encoder.base import ExitOutput
from espnet_ee.errors import UserError
from espnet_ee.model.heads import exit_heads_of, mac_table
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.table import EvidenceRow, macs_of_stop
from espnet_ee.search.beam import NBestSearch
from espnet_ee.text import tokens_to_text


@dataclass(frozen=True)
class Recognition:
    """One utterance's result.

    Attributes:
        text: the words.
        tokens: the greedy tokens.
        exit_layer: 1-based number of the last block that was computed.
        macs: multiply-accumulates spent: subsampling, blocks, the heads that were read, evidence.
        rows: the exits whose heads were read, in order; the last one gave the text.
        seconds: wall clock from the start of the batch to each of ``rows``, divided by the batch's size.
        token_ids: the numbers of ``tokens``.
    """

    text: str
    tokens: tuple[str, ...]
    exit_layer: int
    macs: int
    rows: tuple[EvidenceRow, ...]
    seconds: tuple[float, ...]
    token_ids: tuple[int, ...]

    @property
    def evidence(self) -> ExitEvidence:
        """Evidence of the exit that gave the text."""
        return self.rows[-1].evidence


class EarlyExitRecognizer:
    """Recognises utterances with a policy that decides after which block each may stop.

    Args:
        model: an ESPnet ASR model whose encoder is an early-exit encoder (``model: early_exit``, or the stock
            ``espnet`` model, whose one CTC head then serves every exit).
        policy: when to stop.
        read_every_exit: reads every passed head even where the policy needs none (for evidence tables).
        nbest: makes an N-best of this size at every exit read (for evidence tables); 0: only if the policy needs one.

    Raises:
        UserError: the model's exits cannot be read one by one (a preencoder, a postencoder, no CTC head), the policy does not
            fit them, or it needs an N-best and flashlight-text is missing.

    Example:
        >>> recognizer = EarlyExitRecognizer.from_files(config, checkpoint, EntropyPolicy(0.01))  # doctest: +SKIP
        >>> recognizer.recognize([samples])[0].text  # doctest: +SKIP
        'HELLO'
    """

    def __init__(
        self,
        model: torch.nn.Module,
        policy: ExitPolicy,
        read_every_exit: bool = False,
        nbest: int = 0,
    ) -> None:
        check_readable(model)
        self.model = model.eval()
        self.encoder = model.encoder
        self._keep_every_exit, self._nbest = read_every_exit, nbest
        self.search: NBestSearch | None = None
        self.use(policy)
        self.heads, self.macs = exit_heads_of(model), mac_table(model)
        self.device = next(model.parameters()).device

    def use(self, policy: ExitPolicy) -> None:
        """Changes the policy for what is recognised from now on; see the class for ``policy`` and the errors."""
        policy.check(self.encoder.exit_layers)
        size = max(self._nbest, policy.nbest)
        if not size:
            self.search = None
        elif self.search is None or self.search.nbest != size:
            self.search = NBestSearch(size, self.model.vocab_size, self.model.blank_id)
        self.policy = policy
        self.read_every_exit = self._keep_every_exit or policy.needs_every_exit

    @classmethod
    def from_files(
        cls,
        train_config: str | Path,
        model_file: str | Path,
        policy: ExitPolicy | str | Path | None = None,
        device: str = "cpu",
    ) -> EarlyExitRecognizer:
        """Loads ``config.yaml`` and a checkpoint; see :func:`espnet_ee.store.checkpoint.load_model`.

        Args:
            train_config: ``exp/.../config.yaml``.
            model_file: ``exp/.../*.pth``.
            policy: a policy, the file of a decoding configuration, such as stage 14 writes, or none for the final exit.
            device: torch device.
        """
        from espnet_ee.store.checkpoint import load_model  # imports all of ESPnet's ASR task

        if isinstance(policy, ExitPolicy):
            return cls(load_model(train_config, model_file, device), policy)
        config = DecodingConfig() if policy is None else DecodingConfig.read(policy)
        model = load_model(train_config, model_file, device)
        return cls(model, config.policy_for(model.encoder.exit_layers))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, policy: ExitPolicy | str | None = None, device: str = "cpu"
    ) -> EarlyExitRecognizer:
        """Loads a package or an experiment: a folder, or the name of a model on the Hugging Face hub.

        Args:
            source: see :func:`espnet_ee.store.package.open_model`.
            policy: a policy, the name of one of the package's, or none for its default.
            device: torch device.
        """
        from espnet_ee.store.package import open_model  # imports all of ESPnet's ASR task

        package = open_model(source, device)
        if not isinstance(policy, ExitPolicy):
            policy = package.config(policy).policy_for(package.model.encoder.exit_layers)
        return cls(package.model, policy)

    @torch.inference_mode()
    def recognize(self, batch: Sequence[np.ndarray]) -> list[Recognition]:
        """Recognises a batch; every utterance leaves it as soon as the policy lets it.

        Results do not depend on what an utterance is batched with.

        Args:
            batch: samples (N,) in [-1, 1], or features (L, F) for a model trained on extracted features.

        Returns:
            One result per utterance, in order.

        Raises:
            UserError: an utterance is empty, not finite or of another kind than the model was trained on.
        """
        if isinstance(batch, np.ndarray):
            raise UserError("recognize takes a list of utterances; give [samples] for one")
        if not batch:
            return []
        run = _Run(self, batch)
        while run.active:
            run.step()
        return [run.result(index) for index in range(len(batch))]

    def features(self, speech: np.ndarray) -> torch.Tensor:
        """Normalised features (L, F) of one utterance, zero-padded to the least length the encoder takes.

        One utterance at a time: the STFT's last frames would otherwise see the batch's padding.
        """
        if self.model.frontend is not None and speech.ndim != 1:
            raise UserError("the model takes audio, not features; give a data directory with wav.scp and no feats.scp")
        if self.model.frontend is None and (speech.ndim != 2 or speech.shape[1] != self.encoder.input_size):
            raise UserError(
                f"the model takes extracted features of {self.encoder.input_size} dimensions, not an array of {speech.shape}; "
                "give a data directory of stage 3 with the training's feats_type and frontend"
            )
        if len(speech) == 0:
            raise UserError("an utterance without samples cannot be recognised; drop it from the data")
        if not np.isfinite(speech).all():
            raise UserError("the audio holds values that are not finite; repair or drop it")
        samples = torch.tensor(speech, dtype=torch.float32, device=self.device)[None]
        if samples.dim() == 2:
            # The STFT reflects half a window at both ends: shorter audio cannot be reflected.
            samples = torch.nn.functional.pad(samples, (0, max(0, self._least_samples() - samples.size(1))))
        lengths = torch.tensor([samples.size(1)], device=self.device)
        features, lengths = self.model._extract_feats(samples, lengths)
        if self.model.normalize is not None:
            features, lengths = self.model.normalize(features, lengths)
        missing = max(0, self.encoder.min_frames - features.size(1))
        return torch.nn.functional.pad(features[0], (0, 0, 0, missing))

    def _least_samples(self) -> int:
        stft = getattr(self.model.frontend, "stft", None)
        return 1 if stft is None else stft.n_fft // 2 + 1

    def logits(self, output: ExitOutput, rows: Sequence[int]) -> torch.Tensor:
        """What an exit's head gives for some rows of the batch: (B, T, V), not yet normalised."""
        return self.heads.logits(output.layer, output.hs[rows], output.olens[rows])

    def read_head(self, layer: int, logits: torch.Tensor, olens: torch.Tensor) -> list[ExitEvidence]:
        """Evidence of an exit.

        Args:
            layer: the exit's block.
            logits: (B, T, V), see :meth:`logits`.
            olens: real frames (B,).
        """
        readings = read_frames(layer, logits, olens, self.model.blank_id)
        if self.search is None:
            return readings
        log_probs = logits.log_softmax(dim=-1)
        nbests = [self.search.scores(row[:frames].cpu().numpy()) for row, frames in zip(log_probs, olens, strict=True)]
        return [replace(evidence, nbest_scores=scores) for evidence, scores in zip(readings, nbests, strict=True)]

    def row(self, evidence: ExitEvidence, feature_frames: int) -> EvidenceRow:
        """Adds text and compute to an exit's evidence."""
        encoder_macs = self.macs.encoder_macs(evidence.layer, feature_frames)
        head_macs = self.macs.head_macs(evidence.layer, evidence.frames)
        return EvidenceRow(evidence, tokens_to_text(self.token_strings(evidence.tokens)), encoder_macs, head_macs)

    def token_strings(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """Token numbers as strings."""
        return tuple(self.model.token_list[token] for token in tokens)


def check_readable(model: torch.nn.Module) -> None:
    """Refuses a model with parts that would be passed over: only frontend, normalisation, encoder and heads are computed.

    Raises:
        UserError: names the part.
    """
    for part in ("preencoder", "postencoder"):
        if getattr(model, part, None) is not None:
            raise UserError(f"the model has a {part}, through which no exit can be read; train one with {part}: null")
    if getattr(model, "ctc", None) is None:
        raise UserError("the model has no CTC head (ctc_weight: 0.0), so its exits cannot be read; train one with CTC")


class _Run:
    """One batch on its way through the encoder."""

    def __init__(self, recognizer: EarlyExitRecognizer, batch: Sequence[np.ndarray]) -> None:
        self.recognizer = recognizer
        self.started = time.perf_counter()
        features = [recognizer.features(speech) for speech in batch]
        self.lengths = [len(frames) for frames in features]
        padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        lengths = torch.tensor(self.lengths, device=padded.device)
        self.state = recognizer.encoder.start(padded, lengths)
        self.active = list(range(len(batch)))
        self.rows: list[list[EvidenceRow]] = [[] for _ in batch]
        self.seconds: list[list[float]] = [[] for _ in batch]

    def step(self) -> None:
        """Computes one segment, reads the heads that are wanted, and lets the finished utterances go."""
        output = self.recognizer.encoder.advance(self.state)
        if self.recognizer.read_every_exit:
            self.read(output, range(len(self.active)))
            stopping = [self.stops(output.layer, [row.evidence for row in self.rows[i]]) for i in self.active]
        else:
            # A policy that reads nothing is asked first: only the heads of those that stop are computed.
            stopping = [self.stops(output.layer, [_unread(output.layer)]) for _ in self.active]
            self.read(output, [place for place, stop in enumerate(stopping) if stop])
        going_on = [place for place, stop in enumerate(stopping) if not stop]
        if going_on:
            self.state = output.state if len(going_on) == len(self.active) else output.state.select(going_on)
        self.active = [self.active[place] for place in going_on]

    def stops(self, layer: int, evidence: list[ExitEvidence]) -> bool:
        return layer == self.recognizer.encoder.exit_layers[-1] or self.recognizer.policy.should_stop(evidence)

    def read(self, output: ExitOutput, places: Sequence[int]) -> None:
        """Reads the exit's head for the utterances at these places of the running batch."""
        if not places:
            return
        recognizer = self.recognizer
        logits, olens = recognizer.logits(output, places), output.olens[places]
        for place, evidence in zip(places, recognizer.read_head(output.layer, logits, olens), strict=True):
            index = self.active[place]
            self.rows[index].append(recognizer.row(evidence, self.lengths[index]))
        elapsed = (time.perf_counter() - self.started) / len(self.rows)
        for place in places:
            self.seconds[self.active[place]].append(elapsed)

    def result(self, index: int) -> Recognition:
        rows = tuple(self.rows[index])
        last = rows[-1]
        return Recognition(
            text=last.hypothesis,
            tokens=self.recognizer.token_strings(last.evidence.tokens),
            exit_layer=last.evidence.layer,
            macs=macs_of_stop(rows, len(rows) - 1, self.recognizer.read_every_exit),
            rows=rows,
            seconds=tuple(self.seconds[index]),
            token_ids=last.evidence.tokens,
        )


def _unread(layer: int) -> ExitEvidence:
    """Evidence of an exit whose head was not computed: its place, and nothing to go by."""
    return ExitEvidence(layer, (), math.nan, math.nan, math.nan, math.nan, 0)
