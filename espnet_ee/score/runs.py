"""Reads an online decoding and compares it with the replay of its policy, utterance by utterance."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.files import read_yaml
from espnet_ee.kaldi import is_count, read_scp
from espnet_ee.policy.attending import Search
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.decoding import KEYS, DecodingConfig
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.score.grid import Grid, exits_of, policy_outcome, without
from espnet_ee.score.outcome import Outcome
from espnet_ee.score.wer import check_same_utterances, count_edits


@dataclass(frozen=True)
class OnlineRun:
    """One decoding configuration that ran online on one set.

    Attributes:
        name: the configuration's name.
        policy: what it ran.
        batch_size: how many utterances were decoded together.
        outcome: what it reached, from its own files.
        rtf: measured seconds of computing per second of audio.
        other_exits: utterances that stopped elsewhere than their replay.
        other_texts: utterances whose text differs from their replay's.
        other_macs: utterances whose compute differs from their replay's.
        search: how its texts were looked for; None: as those of the replay.
    """

    name: str
    policy: ExitPolicy
    batch_size: int
    outcome: Outcome
    rtf: float
    other_exits: int
    other_texts: int
    other_macs: int
    search: Search | None = None

    @property
    def equals_replay(self) -> bool:
        """Whether every utterance stopped where its replay stops, with the same text and compute."""
        return not (self.other_exits or self.other_texts or self.other_macs)

    def __str__(self) -> str:
        utterances = len(self.outcome.errors)
        if self.equals_replay:
            text = "same text" if self.search is None else f"the text of another search, {self.search}"
            return f"{self.name}: online = replay: yes ({utterances} utterances: same exits, {text}, same MACs)"
        return (
            f"{self.name}: online = replay: **NO**: of {utterances} utterances {self.other_exits} stopped at another exit, "
            f"{self.other_texts} have another text, {self.other_macs} other MACs; "
            "the replayed numbers do not hold for this decoding: decode both again with the same model, data and batch size"
        )


def read_run(folder: Path, name: str, grid: Grid, references: Mapping[str, str], search: Search | None = None) -> OnlineRun:
    """Reads the decoding of one set.

    Args:
        folder: the set's folder of the online decoding.
        name: what the decoding configuration is called.
        grid: the same set with every exit kept.
        references: text by utterance id.
        search: how the texts of the kept exits were looked for, None: greedily; with another one they are not compared.

    Raises:
        UserError: a file is missing or broken, or the utterances are not those of the reference.
    """
    config = read_config(folder)
    policy = config.policy_for(grid.table.exit_layers)
    texts = without(read_scp(folder / "1best_recog" / "text", allow_empty=True), grid.failed)
    layers, macs = (_read_integers(folder / file, grid.failed) for file in ("utt2exit", "utt2macs"))
    for file, table in (("1best_recog/text", texts), ("utt2exit", layers), ("utt2macs", macs)):
        check_same_utterances(grid.utterances, table, str(folder / file))
    exits = exits_of(grid, policy)
    replay = policy_outcome(grid, exits, policy)
    said = [grid.table.utterances[utt].rows[index].hypothesis for utt, index in zip(grid.utterances, exits, strict=True)]
    others = [row for row, utt in enumerate(grid.utterances) if texts[utt] != said[row].strip()]
    words, characters = replay.words.copy(), replay.characters.copy()
    pairs = [(references[grid.utterances[row]], texts[grid.utterances[row]]) for row in others]
    words[others], characters[others] = count_edits(pairs, "word"), count_edits(pairs, "character")
    own_search = None if config.search == (search or SearchConfig()) else config.search
    own_layers, own_macs = (np.array([table[utt] for utt in grid.utterances]) for table in (layers, macs))
    return OnlineRun(
        name=name,
        policy=policy,
        batch_size=config.batch_size,
        outcome=Outcome(words, characters, own_macs, own_layers, grid.seconds),
        rtf=_read_rtf(folder),
        other_exits=int((own_layers != replay.layers).sum()),
        other_texts=len(others) if own_search is None else 0,
        other_macs=int((own_macs != replay.macs).sum()),
        search=own_search,
    )


def read_config(folder: Path) -> DecodingConfig:
    """How a decoding was made, from its own ``decode.yaml``."""
    path = folder / "decode.yaml"
    facts = read_yaml(path, "decode again")
    return DecodingConfig.from_mapping({key: facts[key] for key in KEYS if key in facts}, str(path))


def search_of(evidence: Path) -> Search | None:
    """How the texts of an evidence table were looked for, as its decoding says; None: nobody says it."""
    return read_config(evidence.parent).search if (evidence.parent / "decode.yaml").is_file() else None


def _read_rtf(folder: Path) -> float:
    rtf = read_yaml(folder / "decode.yaml", "decode again").get("rtf", math.nan)
    if isinstance(rtf, bool) or not isinstance(rtf, (int, float)):
        raise UserError(f"{folder / 'decode.yaml'}: its rtf {rtf!r} is no number; decode again")
    return float(rtf)


def _read_integers(path: Path, failed: Collection[str]) -> dict[str, int]:
    table = without(read_scp(path), failed)
    for utt, value in table.items():
        if not is_count(value):
            raise UserError(f"{path}: {utt} has {value!r}, not a whole number; decode again")
    return {utt: int(value) for utt, value in table.items()}
