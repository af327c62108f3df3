"""A hand-made experiment: three utterances, exits 2 4 6, every number small enough to check by head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from espnet_ee.kaldi import write_scp
from espnet_ee.policy.base import choose_exit
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.registry import build_policy
from espnet_ee.policy.table import EvidenceRow, EvidenceTable, Utterance, macs_of_stop, write_table

EXIT_LAYERS = (2, 4, 6)
REFERENCES = {"a": "THE CAT SAT", "b": "ON THE MAT", "c": "HELLO"}
# Word errors: a 2 1 0, b 0 1 1, c 1 0 0 (the first exit of c says nothing).
HYPOTHESES = {
    "a": ("THE BAT", "THE BAT SAT", "THE CAT SAT"),
    "b": ("ON THE MAT", "ON THE MAT AT", "ON A MAT"),
    "c": ("", "HELLO", "HELLO"),
}
ENTROPIES = {"a": (0.5, 0.3, 0.1), "b": (0.2, 0.1, 0.05), "c": (0.9, 0.25, 0.01)}
SECONDS = {"a": 2.0, "b": 1.0, "c": 1.0}


def make_table() -> EvidenceTable:
    utterances = {}
    for utt, texts in HYPOTHESES.items():
        rows = tuple(
            EvidenceRow(ExitEvidence(layer, (1,), entropy, 0.9, 0.5, -1.0, 10), text, 100 * layer, 10)
            for layer, entropy, text in zip(EXIT_LAYERS, ENTROPIES[utt], texts, strict=True)
        )
        utterances[utt] = Utterance(SECONDS[utt], rows)
    return EvidenceTable(EXIT_LAYERS, utterances)


@pytest.fixture
def table() -> EvidenceTable:
    return make_table()


@pytest.fixture
def references() -> dict[str, str]:
    return dict(REFERENCES)


@pytest.fixture
def write_online() -> Callable[..., Path]:
    """Writes an online decoding as the recogniser does, by replaying the table."""

    def write(folder: Path, policy: str = "entropy", **conf: float) -> Path:
        table = make_table()
        rule = build_policy(policy, conf or {"exit_layer": 6})
        chosen = {utt: choose_exit(rule, utterance.evidence) for utt, utterance in table.utterances.items()}
        rows = {utt: table.utterances[utt].rows for utt in chosen}
        write_scp(folder / "1best_recog" / "text", {utt: rows[utt][i].hypothesis for utt, i in chosen.items()})
        write_scp(folder / "utt2exit", {utt: str(EXIT_LAYERS[i]) for utt, i in chosen.items()})
        macs = {utt: str(macs_of_stop(rows[utt], i, rule.needs_every_exit)) for utt, i in chosen.items()}
        write_scp(folder / "utt2macs", macs)
        facts = {"policy": policy, "policy_conf": conf, "batch_size": 1, "num_threads": 1, "rtf": 0.125}
        (folder / "decode.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def experiment(tmp_path: Path, write_online: Callable[..., Path]) -> Path:
    """exp/ee with an all-exits decoding and an online one of sets dev and test, and data/{dev,test}/text."""
    exp = tmp_path / "exp" / "ee"
    for name in ("dev", "test"):
        write_scp(tmp_path / "data" / name / "text", REFERENCES)
        folder = exp / "decode_all_exits" / name
        write_table(folder / "evidence.tsv", make_table())
        lines = [f"{utt}\t{layer}\t{layer / 100!r}\n" for utt in REFERENCES for layer in EXIT_LAYERS]
        (folder / "timing.tsv").write_text("utt_id\texit_layer\tseconds\n" + "".join(lines), encoding="utf-8")
        facts = {
            "policy": "fixed",
            "policy_conf": {},
            "batch_size": 1,
            "num_threads": 1,
            "parameters": 1234567,
            "train_config": "exp/ee/config.yaml",
            "versions": {"espnet_ee": "0.1.0", "python": "3.11.4", "torch": "2.11.0", "espnet": "202511"},
        }
        (folder / "decode.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
        write_online(exp / "decode_entropy" / name, threshold=0.26)
    return exp
