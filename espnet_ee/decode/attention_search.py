"""ESPnet's joint CTC/attention beam search at an exit, with what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from espnet_ee.compute import PREFIX_MACS, StepMacs
from espnet_ee.encoder.counting import copy_on_same, counter
from espnet_ee.host.compat import BatchBeamSearch, BatchScorerInterface, CTCPrefixScorer
from espnet_ee.policy.attending import AttentionConfig
from espnet_ee.search.joint import JointTexts

PRE_BEAM = 1.5  # ESPnet's: of so many times the beam's tokens, the decoder's best, CTC is asked


class CountedDecoder(BatchScorerInterface):
    """A decoder of ESPnet whose every step is counted: what one costs, by the length of the prefix and the number of frames."""

    def __init__(self, decoder: Any, cost: Callable[[int, int], int]) -> None:
        self.decoder, self.cost, self.macs = decoder, cost, 0

    def batch_init_state(self, x: torch.Tensor) -> None:
        """None: nothing is known of the first token."""

    def batch_score(self, ys: torch.Tensor, states: list[Any], xs: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        """Log-probabilities of the token (N, V) that follows prefixes (N, L), by the exit's hidden states (N, T, D); and states after it."""
        self.macs += len(ys) * self.cost(ys.size(1), xs.size(1))
        return self.decoder.batch_score(ys, states, xs)


class KnownPosteriors:
    """A CTC head that was read already (T, V), as ESPnet's prefix scorer asks for it."""

    def __init__(self, log_probs: torch.Tensor) -> None:
        self.log_probs = log_probs

    def log_softmax(self, hs: torch.Tensor) -> torch.Tensor:
        """(1, T, V), whatever the hidden states."""
        return self.log_probs[None]


class AttentionSearch:
    """Looks for the text of an exit with its decoder and its head.

    An object serves one thread at a time as well as many: what belongs to an utterance is made for it. The decoders of a model are
    alike, and so is what a step of them costs.
    """

    def __init__(self, model: Any, config: AttentionConfig, step: StepMacs) -> None:
        self.sos, self.eos, self.blank, self.vocabulary = model.sos, model.eos, model.blank_id, len(model.token_list)
        self.config, self.step = config, step
        self.beam = min(config.beam, self.vocabulary)  # the first token is one of so many
        pruned = int(PRE_BEAM * self.beam)
        self.scored = 0 if not config.ctc_weight else min(pruned, self.vocabulary)

    def __call__(self, decoder: torch.nn.Module, hidden: torch.Tensor, log_probs: torch.Tensor) -> JointTexts:
        """The texts of one utterance at one exit: what the decoder reads (T, D), without padding, and what the head says (T, V)."""
        if not len(hidden):
            return JointTexts((), (), math.nan, 0)
        counted = CountedDecoder(decoder, self._cost)
        search = BatchBeamSearch(
            scorers={"decoder": counted, "ctc": CTCPrefixScorer(KnownPosteriors(log_probs), self.eos)},
            weights={"decoder": 1.0 - self.config.ctc_weight, "ctc": self.config.ctc_weight},
            beam_size=self.beam,
            vocab_size=self.vocabulary,
            sos=self.sos,
            eos=self.eos,
            pre_beam_ratio=PRE_BEAM,
            pre_beam_score_key="full",
        )
        texts = search(hidden, maxlenratio=self._longest(len(hidden)))[: self.beam]
        if not texts:
            return JointTexts((), (), math.nan, counted.macs)
        best, marks = texts[0].yseq.tolist(), (self.sos, self.eos, self.blank)
        return JointTexts(
            tokens=tuple(token for token in best if token not in marks),
            scores=tuple(float(text.score) for text in texts),
            decoder_log_prob=float(texts[0].scores["decoder"]) / (len(best) - 1),
            macs=counted.macs,
        )

    def _longest(self, frames: int) -> float:
        """What the configuration allows, as ESPnet takes it; where CTC is asked, no more tokens than frames, of which it says no prefix."""
        ratio = self.config.maxlenratio
        tokens = -int(ratio) if ratio < 0 else int(ratio * frames)
        return -float(frames) if self.scored and tokens > frames else ratio

    def _cost(self, tokens: int, frames: int) -> int:
        return self.step(tokens, frames) + PREFIX_MACS * frames * self.scored


def count_step(decoder: torch.nn.Module, size: int) -> StepMacs:
    """What a step of a decoder costs, as torch counts it over few tokens and frames.

    A step looks at all tokens so far and at all frames, at the one in each self-attention and at the other in each
    source-attention: linear in both, with no product of them. The decoder stays as it is; size is that of the hidden states, D.
    """
    twin: Any = copy_on_same(decoder)
    weight = next(twin.parameters())

    def count(tokens: int, frames: int) -> int:
        ys = torch.zeros(1, tokens, dtype=torch.long, device=weight.device)
        known = [weight.new_zeros(tokens - 1, size) for _ in twin.decoders] if tokens > 1 else None
        with counter() as macs:
            twin.batch_score(ys, [known], weight.new_zeros(1, frames, size))
            return macs()

    first = count(1, 1)
    return StepMacs(first, count(2, 1) - first, count(1, 2) - first)
