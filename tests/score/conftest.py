"""A hand-made experiment: six utterances, exits 2 4 6, every number small enough to check by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from espnet_ee.kaldi import write_scp
from espnet_ee.policy.base import ExitPolicy, choose_exit
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.table import EvidenceRow, EvidenceTable, Utterance, macs_of_stop, write_table
from espnet_ee.score.calibrate import calibrate_policies, parse_target, write_calibrated
from espnet_ee.score.grid import Grid, make_grid

EXIT_LAYERS = (2, 4, 6)
REFERENCES = {
    "a": "the cat sat",
    "b": "on a mat",
    "c": "hello",
    "d": "stop now please",
    "e": "go",
    "f": "we are here",
}
HYPOTHESES = {
    "a": ("the bat", "the cat sad", "the cat sat"),
    "b": ("on a mat", "on the mat", "on a mat"),
    "c": ("", "hello", "hello"),
    "d": ("stop no please", "stop no please", "stop no pleas"),
    "e": ("go go", "to", "go"),
    "f": ("we were here", "we  are here ", "we are her"),
}
ENTROPIES = {
    "a": (0.50, 0.30, 0.10),
    "b": (0.20, 0.15, 0.05),
    "c": (0.60, 0.12, 0.02),
    "d": (0.40, 0.25, 0.22),
    "e": (0.45, 0.35, 0.08),
    "f": (0.28, 0.18, 0.11),
}
SECONDS = {"a": 2.0, "b": 1.0, "c": 0.5, "d": 1.5, "e": 1.0, "f": 2.0}
UNITS = {
    "a": 4,
    "b": 2,
    "c": 1,
    "d": 3,
    "e": 2,
    "f": 5,
}  # of compute: 3, 5 and 7 million MACs to the exits, half a million a head
CLOCKS = {"a": 5, "b": 2, "c": 1, "d": 3, "e": 3, "f": 2}  # of time: 0.04, 0.08 and 0.16 s to the exits
SETS = {"dev": "abcdef", "test": "acdf"}
TARGETS = ("wer_loss=0", "wer_loss=34", "macs_per_second=1")


def make_table(names: Sequence[str] = "abcdef") -> EvidenceTable:
    utterances = {}
    for utt in names:
        rows = tuple(
            EvidenceRow(
                ExitEvidence(layer, (index, 7), entropy, 0.9 - entropy / 3, 0.25, -1.0, 10),
                text,
                (3 + 2 * index) * 1000000 * UNITS[utt],
                500000 * UNITS[utt],
            )
            for index, (layer, entropy, text) in enumerate(zip(EXIT_LAYERS, ENTROPIES[utt], HYPOTHESES[utt], strict=True))
        )
        utterances[utt] = Utterance(SECONDS[utt], rows)
    return EvidenceTable(EXIT_LAYERS, utterances)


def make_timing(names: Sequence[str] = "abcdef") -> dict[str, tuple[float, ...]]:
    return {utt: tuple(0.04 * CLOCKS[utt] * factor for factor in (1, 2, 4)) for utt in names}


def make_references(names: Sequence[str] = "abcdef") -> dict[str, str]:
    return {utt: REFERENCES[utt] for utt in names}


def with_text(table: EvidenceTable, utt: str, layer: int, text: str) -> EvidenceTable:
    """The same decoding with another text of one utterance at one exit."""
    utterance = table.utterances[utt]
    rows = tuple(replace(row, hypothesis=text) if row.evidence.layer == layer else row for row in utterance.rows)
    return EvidenceTable(table.exit_layers, {**table.utterances, utt: replace(utterance, rows=rows)})


@pytest.fixture
def table() -> EvidenceTable:
    return make_table()


@pytest.fixture
def references() -> dict[str, str]:
    return make_references()


@pytest.fixture
def grid() -> Grid:
    return make_grid("dev", make_table(), make_references(), make_timing())


def write_every_exit(folder: Path, names: Sequence[str]) -> None:
    """A decoding of every exit, as stage 12 leaves it."""
    write_table(folder / "evidence.tsv", make_table(names))
    times = {utt: zip(EXIT_LAYERS, seconds, strict=True) for utt, seconds in make_timing(names).items()}
    lines = [f"{utt}\t{layer}\t{seconds!r}\n" for utt, exits in times.items() for layer, seconds in exits]
    (folder / "timing.tsv").write_text("utt_id\texit_layer\tseconds\n" + "".join(lines), encoding="utf-8")
    facts = {
        "batch_size": 1,
        "num_threads": 1,
        "parameters": 1234567,
        "train_config": "exp/ee/config.yaml",
        "versions": {"espnet_ee": "0.1.0", "python": "3.11.4", "torch": "2.11.0", "espnet": "202511"},
    }
    (folder / "decode.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")


def write_online(folder: Path, names: Sequence[str], policy: ExitPolicy, rtf: float) -> None:
    """An online decoding as the recogniser leaves it, by replaying the table."""
    table = make_table(names)
    exits = {utt: choose_exit(policy, utterance.evidence) for utt, utterance in table.utterances.items()}
    rows = {utt: table.utterances[utt].rows for utt in exits}
    write_scp(folder / "1best_recog" / "text", {utt: rows[utt][i].hypothesis for utt, i in exits.items()})
    write_scp(folder / "utt2exit", {utt: str(EXIT_LAYERS[i]) for utt, i in exits.items()})
    macs = {utt: str(macs_of_stop(rows[utt], i, policy.needs_every_exit)) for utt, i in exits.items()}
    write_scp(folder / "utt2macs", macs)
    facts = {
        "policy": policy.name,
        "policy_conf": dict(vars(policy)),
        "batch_size": 1,
        "num_threads": 1,
        "rtf": rtf,
        "utterances": 4,
    }
    (folder / "decode.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """exp/ee: every exit of dev (six utterances) and test (four of them), calibrated on dev, one policy online on test."""
    exp = tmp_path / "exp" / "ee"
    for name, utterances in SETS.items():
        write_scp(tmp_path / "data" / name / "text", make_references(utterances))
        write_every_exit(exp / "decode_every_exit" / name, utterances)
    dev = make_grid("dev", make_table(), make_references(), make_timing())
    calibrated = calibrate_policies(dev, ["entropy"], [parse_target(target) for target in TARGETS], [])
    write_calibrated(exp / "policies", calibrated, "dev")
    write_online(exp / "decode_entropy_wer_loss0" / "test", SETS["test"], EntropyPolicy(0.325), rtf=0.05)
    return exp
