"""What espnet-ee export writes of a model gives, without torch, the exits, texts and numbers that torch gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from espnet_ee.api import EarlyExitASR
from espnet_ee.decode.loop import recognise
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.runtime.model import open_export
from espnet_ee.runtime.onnx_session import OnnxSession
from espnet_ee.store.onnx_folder import OnnxExport, export_onnx
from tests.store import onnx_models

LENGTHS = (16000, 9000, 24000, 400, 50, 12345)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchSession, Path]:
    """A model and its export."""
    model = onnx_models.model(**onnx_models.settings(normalize="utterance_mvn"))
    config = DecodingConfig(EntropyPolicy(0.1))
    export = OnnxExport({"sure": config}, "sure", int8=True)
    folder = export_onnx(model, 16000, tmp_path_factory.mktemp("exported"), export)
    return TorchSession(model), folder


def test_every_exit_is_torchs(pair: tuple[TorchSession, Path]) -> None:
    torch_session, folder = pair
    speech = onnx_models.speech(LENGTHS)
    session = OnnxSession(open_export(folder))
    assert (session.exit_layers, session.macs) == (torch_session.exit_layers, torch_session.macs)
    ours = recognise(session, DecodingConfig(), speech, keep_every_exit=True)
    theirs = recognise(torch_session, DecodingConfig(), speech, keep_every_exit=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.text, mine.token_ids, mine.macs) == (other.text, other.token_ids, other.macs)
        for row, expected in zip(mine.rows, other.rows, strict=True):
            assert row.evidence.tokens == expected.evidence.tokens and row.hypothesis == expected.hypothesis
            assert (row.encoder_macs, row.head_macs) == (expected.encoder_macs, expected.head_macs)
            for name in ("entropy", "confidence", "score"):
                assert getattr(row.evidence, name) == pytest.approx(getattr(expected.evidence, name), rel=1e-3, abs=1e-4)


def test_its_policy_and_its_int8_graphs_come_along(pair: tuple[TorchSession, Path]) -> None:
    torch_session, folder = pair
    speech = onnx_models.speech(LENGTHS)
    entropies = [
        row.evidence.entropy for result in recognise(torch_session, DecodingConfig(), speech, True) for row in result.rows
    ]
    policy = EntropyPolicy(float(np.median(entropies)))
    asr = EarlyExitASR.from_pretrained(folder.parent)
    assert asr.policy_name == "sure"
    asr.use(policy)
    here = asr.recognise(speech)
    there = recognise(torch_session, DecodingConfig(policy), speech)
    assert [(r.exit_layer, r.text) for r in here] == [(r.exit_layer, r.text) for r in there]
    int8 = EarlyExitASR.from_pretrained(folder.parent, policy, int8=True)
    assert [result.score for result in int8.recognise(speech)] == [int8.recognise([samples])[0].score for samples in speech]
    assert int8.session.precision == "int8"
