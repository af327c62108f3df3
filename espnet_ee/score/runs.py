"""Reads what a decoding left in its folder, and compares an online run with its replay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write, read_lines, read_yaml
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.decoding import KEYS, DecodingConfig
from espnet_ee.policy.table import EvidenceTable, macs_of_stop, read_table
from espnet_ee.score.replay import OperatingPoint, ScoredSet, Seconds, choose_exits, operating_point, score_set
from espnet_ee.score.wer import add_counts, check_same_utterances, count_errors

TIMING_COLUMNS = ("utt_id", "exit_layer", "seconds")


@dataclass(frozen=True)
class OnlineRun:
    """One policy that ran online on one set.

    Attributes:
        point: what it reached, from its own files.
        policy: name and settings, for the report.
        utterances: how many were decoded.
        other_exits: utterances that stopped elsewhere than their replay.
        other_texts: utterances whose text differs from their replay's.
        other_macs: utterances whose compute differs from their replay's.
        batch_size: how many utterances were decoded together.
    """

    point: OperatingPoint
    policy: str
    utterances: int
    other_exits: int
    other_texts: int
    other_macs: int
    batch_size: int | None

    @property
    def equals_replay(self) -> bool:
        """Whether every utterance stopped where its replay stops, with the same text and compute."""
        return not (self.other_exits or self.other_texts or self.other_macs)


def read_timing(path: Path, exit_layers: tuple[int, ...]) -> Seconds:
    """Reads ``timing.tsv``: for each utterance the seconds to the text of every exit.

    Raises:
        UserError: a line is broken, or an utterance lacks an exit.
    """
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(read_lines(path), 1):
        parts = line.split("\t")
        if tuple(parts) == TIMING_COLUMNS or not line:
            continue
        try:
            utt, layer, seconds = parts[0], int(parts[1]), float(parts[2])
            right = 0 <= seconds < math.inf and layer not in found.setdefault(utt, {})
        except (IndexError, ValueError):
            right = False
        if not right:
            remedy = "decode with --all_exits true again"
            raise UserError(f"{path}:{number}: not utt_id, exit_layer, seconds, each exit once; {remedy}")
        found[utt][layer] = seconds
    for utt, exits in found.items():
        if tuple(sorted(exits)) != exit_layers:
            raise UserError(f"{path}: {utt} has times for exits {sorted(exits)}, expected {exit_layers}; decode again")
    return {utt: tuple(exits[layer] for layer in exit_layers) for utt, exits in found.items()}


def load_scored_set(folder: Path, name: str, references: Mapping[str, str]) -> ScoredSet:
    """Reads and aligns one set of an all-exits decoding.

    Args:
        folder: the set's folder, with ``evidence.tsv`` and perhaps ``timing.tsv``.
        name: the set's name.
        references: text by utterance id.
    """
    table = read_table(folder / "evidence.tsv")
    timing = folder / "timing.tsv"
    return score_set(name, table, references, read_timing(timing, table.exit_layers) if timing.exists() else None)


def load_online_run(folder: Path, tag: str, scored: ScoredSet, references: Mapping[str, str]) -> OnlineRun:
    """Reads an online decoding and compares it with the replay of the same policy, utterance by utterance.

    Args:
        folder: the set's folder of the online decoding.
        tag: the decoding's name.
        scored: the same set with all exits kept.
        references: text by utterance id.

    Raises:
        UserError: a file is missing or broken, or the utterances are not those of the reference.
    """
    conf = read_yaml(folder / "decode.yaml", "run stage 12")
    decoding = {key: conf[key] for key in KEYS if key in conf}
    policy = DecodingConfig.from_mapping(decoding, str(folder / "decode.yaml")).policy_for(scored.table.exit_layers)
    texts = read_scp(folder / "1best_recog" / "text", allow_empty=True)
    exits = _read_integers(folder / "utt2exit")
    macs = _read_integers(folder / "utt2macs")
    for path, table in (("1best_recog/text", texts), ("utt2exit", exits), ("utt2macs", macs)):
        check_same_utterances(references, table, str(folder / path))
    choices = choose_exits(scored.table, policy)
    expected = {
        utt: (scored.table.exit_layers[i], rows[i].hypothesis.strip(), macs_of_stop(rows, i, policy.needs_every_exit))
        for utt, i in choices.items()
        for rows in [scored.table.utterances[utt].rows]
    }
    replayed = operating_point(
        scored,
        "online",
        tag,
        choices,
        needs_every_exit=policy.needs_every_exit,
        threshold=getattr(policy, "threshold", None),
    )
    return OnlineRun(
        point=replace(
            replayed,
            words=add_counts(count_errors(references, texts, "word").values()),
            characters=add_counts(count_errors(references, texts, "character").values()),
            depth=sum(exits.values()) / len(exits),
            macs_per_second=sum(macs.values()) / scored.audio_seconds,
            rtf=conf.get("rtf"),
            rtf_replayed=False,
        ),
        policy=describe_policy(policy),
        utterances=len(texts),
        other_exits=sum(exits[utt] != layer for utt, (layer, _, _) in expected.items()),
        other_texts=sum(texts[utt] != text for utt, (_, text, _) in expected.items()),
        other_macs=sum(macs[utt] != count for utt, (_, _, count) in expected.items()),
        batch_size=conf.get("batch_size"),
    )


def describe_policy(policy: ExitPolicy) -> str:
    """Name and settings in one line; a fitted model's numbers stay in its file."""
    settings = [f"{key}={value}" for key, value in asdict(policy).items() if not isinstance(value, Mapping)]
    return " ".join([policy.name, *settings])


def _read_integers(path: Path) -> dict[str, int]:
    table = read_scp(path)
    for utt, value in table.items():
        if not value.isdecimal():
            raise UserError(f"{path}: {utt} has {value!r}, not a whole number; decode again")
    return {utt: int(value) for utt, value in table.items()}


def write_errors(path: Path, scored: ScoredSet) -> None:
    """Writes the word errors of every utterance and exit, as a bootstrap or a look at the hard ones needs them."""
    table: EvidenceTable = scored.table
    with atomic_write(path) as stream:
        stream.write("\t".join(["utt_id", "words", *(f"errors_exit{layer:02d}" for layer in table.exit_layers)]) + "\n")
        for utt in sorted(scored.words):
            counts = scored.words[utt]
            stream.write("\t".join([utt, str(counts[0].tokens), *(str(count.errors) for count in counts)]) + "\n")
