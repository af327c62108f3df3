"""How much a language model counts: its weight and what is added for a token, chosen on the development set.

The utterances are searched where they would stop: at the exits of a policy that is calibrated on the same set, read greedily.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ee.data.inputs import Input
from espnet_ee.decode.results import decode, evidence_table
from espnet_ee.decode.session import ExitSession, log_probs_at
from espnet_ee.errors import UserError
from espnet_ee.files import atomic_dir, write_yaml
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.searching import BEAM, SearchConfig
from espnet_ee.score.calibrate import calibrate_policies, parse_target
from espnet_ee.score.grid import exits_of, make_grid, without
from espnet_ee.score.wer import ErrorCounts, add_counts, count_edits
from espnet_ee.search.beam import BeamSearch, with_insertion
from espnet_ee.text import tokens_to_text

FOLDER, CONFIG, FACTS, LM = "lm", "decode_lm.yaml", "tuning.yaml", "lm.arpa"
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
INSERTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Tuning:
    """A language model, and what is tried with it.

    Attributes:
        lm: ARPA file of the model's tokens.
        beam: width of the beam.
        lm_weights: of the language model; 0 is the beam without it.
        insertions: what is added for a token.
    """

    lm: Path
    beam: int = 10
    lm_weights: Sequence[float] = WEIGHTS
    insertions: Sequence[float] = INSERTIONS

    @property
    def search(self) -> SearchConfig:
        """The search, not tuned yet."""
        return SearchConfig(BEAM, self.beam, lm=str(self.lm))


@dataclass(frozen=True)
class Trial:
    """One pair of the grid, and its word and character errors on the development set."""

    weight: float
    insertion: float
    words: ErrorCounts
    characters: ErrorCounts

    @property
    def rank(self) -> tuple[float, ...]:
        """The least is the best: words, then characters; of equals what changes least."""
        return (self.words.errors, self.characters.errors, self.weight, abs(self.insertion))


@dataclass(frozen=True)
class Stops:
    """Where the utterances of a development set would stop: by a policy (None: the final exit) that is calibrated on it for a target."""

    policy: str | None = None
    target: str = "wer_loss=1"
    features: Sequence[str] = ()

    def layers(self, session: ExitSession[Any], inputs: Sequence[Input], references: Mapping[str, str]) -> dict[str, int]:
        """The exit of each utterance; those that cannot be recognised are left out."""
        decoding = decode(session, DecodingConfig(), inputs, keep_every_exit=True)
        if self.policy is None or len(session.exit_layers) == 1:
            return dict.fromkeys(decoding.results, session.exit_layers[-1])
        grid = make_grid("dev", evidence_table(decoding), without(references, decoding.failed))
        [calibrated] = calibrate_policies(grid, [self.policy], [parse_target(self.target)], self.features)
        return dict(zip(grid.utterances, grid.layers[exits_of(grid, calibrated.policy)].tolist(), strict=True))


def tune(
    session: ExitSession[Any], tuning: Tuning, inputs: Sequence[Input], references: Mapping[str, str], stops: Stops
) -> list[Trial]:
    """Tries every pair of the grid on the development set; its frames (T, V) at the exits where it stops stay in memory.

    Raises:
        UserError: the language model is of other tokens, or nothing can be recognised.
    """
    BeamSearch(tuning.search, tuple(session.tokens), session.blank)  # a model of other tokens is said before hours are spent
    layers = stops.layers(session, inputs, references)
    inputs = [item for item in inputs if item.utt_id in layers]
    frames = {item.utt_id: log_probs_at(session, item.load(), layers[item.utt_id]) for item in inputs}
    return _try_pairs(session, tuning, frames, references)


def _try_pairs(
    session: ExitSession[Any], tuning: Tuning, frames: Mapping[str, np.ndarray], references: Mapping[str, str]
) -> list[Trial]:
    """Every pair of the grid on log-probabilities (T, V); the beam is searched once for each weight, for what is added for tokens
    orders its texts anew."""

    def text(tokens: Sequence[int]) -> str:
        return tokens_to_text([session.tokens[token] for token in tokens], session.token_type)

    trials = []
    for weight in tuning.lm_weights:
        search = BeamSearch(replace(tuning.search, lm_weight=weight), tuple(session.tokens), session.blank)
        found = {utterance: search.texts(log_probs) for utterance, log_probs in frames.items()}
        for insertion in tuning.insertions:
            best = {utterance: with_insertion(texts, insertion)[:1] for utterance, texts in found.items()}
            pairs = [(references[utt], text(texts[0][0]) if texts else "") for utt, texts in best.items()]
            words, characters = (add_counts(count_edits(pairs, unit)) for unit in ("word", "character"))
            trials.append(Trial(weight, insertion, words, characters))
    return trials


def write_tuned(folder: Path, tuning: Tuning, trials: Sequence[Trial], facts: Mapping[str, Any]) -> None:
    """Writes (or replaces) the folder of a tuned language model: the model, the decoding configuration of its search, every pair's
    errors, and the facts of what it belongs to."""
    best = min(trials, key=lambda trial: trial.rank)
    search = replace(tuning.search, lm=LM, lm_weight=best.weight, insertion=best.insertion)
    table = [[trial.weight, trial.insertion, round(trial.words.rate, 3), round(trial.characters.rate, 3)] for trial in trials]
    with atomic_dir(folder) as temporary:
        (temporary / LM).write_bytes(tuning.lm.read_bytes())
        write_yaml(temporary / CONFIG, DecodingConfig(search=search).to_mapping())
        write_yaml(temporary / FACTS, {**facts, "weight_insertion_wer_cer": table})


def check_grid(tuning: Tuning) -> None:
    """Raises UserError where there is nothing to try, or a number is none."""
    if not tuning.lm_weights or not tuning.insertions:
        raise UserError("--lm_weights and --insertions: give at least one number for each")
    for weight in tuning.lm_weights:
        for insertion in tuning.insertions:
            replace(tuning.search, lm_weight=weight, insertion=insertion)
