"""Cluster heads: what they are trained for, that they cost and decide the same online and replayed, and where the centres are from."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

from espnet_ee.decode.loop import recognise
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.errors import UserError
from espnet_ee.model.cluster_heads import CENTRES, cluster_heads_of
from espnet_ee.model.heads import mac_table
from espnet_ee.model.term import ExitBatch
from espnet_ee.policy.base import choose_exit
from espnet_ee.policy.cluster_entropy import ClusterEntropyPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.table import EvidenceTable, Utterance, macs_of_stop, read_table, write_table
from tests import tiny

CLUSTERS = 5
CONF = {"ctc_weight": 1.0, "exit_clusters": CLUSTERS, "exit_terms": {"ctc": 1.0, "clusters": 0.5}}
POLICY = ClusterEntropyPolicy(0.0)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    made = tiny.model(model_conf=CONF)
    torch.manual_seed(3)
    torch.nn.init.normal_(made.exit_terms.terms["clusters"].centres)
    return made


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(0, 0.1, count).astype(np.float32) for count in (16000, 9000, 5000, 12345, 7777)]


def batch_of(hidden: list[torch.Tensor], olens: list[int]) -> ExitBatch:
    logits = torch.zeros(len(hidden), *hidden[0].shape[:2], 8)
    empty = torch.zeros(len(olens), 1, dtype=torch.long)
    return ExitBatch([1, 2, 4], hidden, logits, torch.tensor(olens), empty, torch.ones(len(olens), dtype=torch.long))


def test_a_head_is_trained_to_tell_the_cluster_of_the_final_exits_frame(model) -> None:
    term, olens = model.exit_terms.terms["clusters"], [7, 4]
    torch.manual_seed(1)
    hidden = [torch.randn(2, 7, 16, requires_grad=True) for _ in range(3)]
    term.train()
    values = term(batch_of(hidden, olens))
    assert values[-1] == 0
    for place, layer in enumerate((1, 2)):
        losses = []
        for row, length in enumerate(olens):
            for frame in range(length):
                distances = [(hidden[-1][row, frame] - centre).norm() for centre in term.centres]
                target = min(range(CLUSTERS), key=distances.__getitem__)
                losses.append(-term.heads[str(layer)](hidden[place][row, frame]).log_softmax(-1)[target])
        assert values[place].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    values.sum().backward()
    assert hidden[-1].grad is None and hidden[0].grad is not None
    assert not hidden[0].grad[1, 4:].any()  # padding teaches nothing
    assert all(head.weight.grad.any() for head in term.heads.values())
    term.eval()
    assert not term(batch_of(hidden, olens)).any()
    model.zero_grad()


def test_a_frozen_backbone_leaves_the_cluster_heads_in_training() -> None:
    made = tiny.model(model_conf={**CONF, "freeze_backbone": True})
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in made.named_parameters() if "clusters.heads" in name} <= trained
    assert not any(name.startswith("encoder.encoders") for name in trained)


@pytest.mark.parametrize("row", range(3))
def test_online_as_in_a_batch_as_in_the_replay(model, speech, row: int) -> None:
    table = tiny.every_exit(model, speech)
    levels = sorted(POLICY.level([row.evidence]) for whole in table for row in whole.rows[:-1])
    assert all(0 < level < math.log(CLUSTERS) + 1e-6 for level in levels)
    assert all(math.isnan(whole.rows[-1].evidence.cluster_entropy) for whole in table)
    threshold = (levels[0] - 1, (levels[4] + levels[5]) / 2, levels[-1] + 1)[row]
    config = DecodingConfig.from_mapping({"policy": "cluster_entropy", "policy_conf": {"threshold": threshold}}, "test")
    session = TorchSession(model)
    together = recognise(session, config, speech)
    for samples, whole, one in zip(speech, table, together, strict=True):
        index = choose_exit(replace(POLICY, threshold=threshold), [row.evidence for row in whole.rows])
        (alone,) = recognise(session, config, [samples])
        for result in (one, alone):
            assert result.exit_layer == whole.rows[index].evidence.layer
            assert (result.text, result.macs) == (whole.rows[index].hypothesis, macs_of_stop(whole.rows, index, True))


def test_what_a_cluster_head_costs_is_counted(model) -> None:
    plain, costs = (mac_table(made) for made in (tiny.model(), model))
    for layer in (1, 2):
        assert costs.head_macs(layer, 10) - plain.head_macs(layer, 10) == 10 * (16 * CLUSTERS + 2 * CLUSTERS)
    assert costs.head_macs(4, 10) == plain.head_macs(4, 10)


def test_the_evidence_is_kept_in_the_table(model, speech, tmp_path: Path) -> None:
    table = EvidenceTable((1, 2, 4), {"u": Utterance(1.0, tiny.every_exit(model, speech[:1])[0].rows)})
    write_table(tmp_path / "evidence.tsv", table)
    kept = read_table(tmp_path / "evidence.tsv").utterances["u"].evidence
    assert [exit_.cluster_entropy for exit_ in kept[:2]] == [
        exit_.cluster_entropy for exit_ in table.utterances["u"].evidence[:2]
    ]
    assert math.isnan(kept[2].cluster_entropy)
    other = EvidenceTable((1, 2, 4), {"u": Utterance(1.0, tiny.every_exit(tiny.model(), speech[:1])[0].rows)})
    write_table(tmp_path / "plain.tsv", other)
    assert "cluster" not in (tmp_path / "plain.tsv").read_text()


def test_a_model_without_cluster_heads_is_one_line(speech) -> None:
    made = tiny.model()
    assert cluster_heads_of(made) == {}
    config = DecodingConfig.from_mapping({"policy": "cluster_entropy", "policy_conf": {"threshold": 1.0}}, "test")
    with pytest.raises(UserError, match="policy cluster_entropy: the model, or its export, has no cluster heads; train"):
        recognise(TorchSession(made), config, speech[:1])


def test_centres_are_needed(model) -> None:
    made = tiny.model(model_conf=CONF)
    term = made.exit_terms.terms["clusters"].train()
    with pytest.raises(UserError, match=r"exit_terms: clusters has no centres; make them by tools/cluster_frames\.py"):
        term(batch_of([torch.randn(1, 3, 16) for _ in range(3)], [3]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_clusters": 0}, "exit_clusters 0 is no number of clusters from 2"),
        ({"exit_clusters": "many"}, "exit_clusters 'many' is no number"),
        ({"exit_terms": {"ctc": 1.0}}, "exit_clusters without their term in the loss"),
    ],
)
def test_impossible_settings_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny.model(model_conf={**CONF, **changes})


@pytest.fixture(scope="module")
def tool() -> Any:
    path = Path(__file__).resolve().parents[2] / "tools" / "cluster_frames.py"
    spec = importlib.util.spec_from_file_location("cluster_frames", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tool_finds_clusters_that_are_there(tool) -> None:
    random = np.random.default_rng(0)
    truth = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    frames = np.concatenate([centre + random.normal(0, 0.1, (50, 2)) for centre in truth]).astype(np.float32)
    centres = tool.cluster(frames, 3, seed=0)
    assert sorted(map(tuple, centres.round(0) + 0.0)) == sorted(map(tuple, truth))
    assert (tool.cluster(frames, 3, seed=0) == centres).all()
    with pytest.raises(UserError, match="--clusters 200: there are no more than 150 frames"):
        tool.cluster(frames, 200, seed=0)


def test_the_tools_file_fits_the_model(tool, model, speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile

    tiny.save(tmp_path, tiny.model())
    (tmp_path / "data").mkdir()
    for number, samples in enumerate(speech):
        soundfile.write(tmp_path / f"{number}.wav", samples, 16000)
    (tmp_path / "data" / "wav.scp").write_text("".join(f"u{n} {tmp_path}/{n}.wav\n" for n in range(len(speech))))
    words = ["--model", str(tmp_path), "--model_file", str(tmp_path / "model.pth"), "--data", str(tmp_path / "data")]
    monkeypatch.setattr("sys.argv", ["tool", *words, "--clusters", str(CLUSTERS), "--out", str(tmp_path / "centres.pth")])
    tool.main()
    state = torch.load(tmp_path / "centres.pth", weights_only=True)
    assert list(state) == [CENTRES] and state[CENTRES].shape == model.state_dict()[CENTRES].shape
    assert len(np.unique(state[CENTRES].numpy(), axis=0)) == CLUSTERS
    made = tiny.model(seed=1, model_conf=CONF)
    for file in ("model.pth", "centres.pth"):  # as --init_param takes them
        load_pretrained_model(str(tmp_path / file), made, ignore_init_mismatch=False, map_location="cpu")
    assert (made.state_dict()[CENTRES] == state[CENTRES]).all()
    assert (made.ctc.ctc_lo.weight == tiny.model().ctc.ctc_lo.weight).all()
