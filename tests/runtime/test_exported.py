"""What espnet-ee export writes of a model gives, without torch, the exits, texts and numbers that torch gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from espnet_ee.api import EarlyExitASR
from espnet_ee.decode.loop import recognise
from espnet_ee.decode.session import UtteranceError
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.runtime.model import open_export
from espnet_ee.runtime.onnx_session import OnnxSession
from espnet_ee.store.onnx_folder import OnnxExport, export_onnx
from espnet_ee.text import collapse
from tests.store import onnx_models

LENGTHS = (16000, 9000, 24000, 400, 50, 12345)
UNUSUAL = {
    "0.1 s": onnx_models.speech((1600,))[0],
    "silence": np.zeros(16000, np.float32),
    "60 s": onnx_models.speech((60 * 16000,))[0],
}


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


def self_stopping(folder: Path, batch: list[np.ndarray]) -> list[tuple[tuple[int, ...], int]]:
    """Tokens and exit layer of each utterance by the one file, which is given the features that the runtime makes."""
    features = [open_export(folder).features(samples) for samples in batch]
    lengths = [len(frames) for frames in features]
    x = np.stack([np.pad(frames, ((0, max(lengths) - len(frames)), (0, 0))) for frames in features])
    outputs = onnx_models.run(folder / "self_stopping.onnx", {"x": x, "x_lens": np.array(lengths)})
    rows = zip(outputs["log_probs"], outputs["lens"], outputs["exit_layer"], strict=True)
    return [(tuple(collapse(table[:count].argmax(-1).tolist())), int(layer)) for table, count, layer in rows]


def test_unusual_audio_is_as_in_torch(pair: tuple[TorchSession, Path]) -> None:
    torch_session, folder = pair
    asr, batch = EarlyExitASR.from_pretrained(folder.parent), list(UNUSUAL.values())
    there = recognise(torch_session, asr.config, batch)
    assert [(r.text, r.exit_layer) for r in asr.recognise(batch)] == [(r.text, r.exit_layer) for r in there]
    expected = [(r.token_ids, r.exit_layer) for r in there]
    assert self_stopping(folder, batch) == expected == [self_stopping(folder, [samples])[0] for samples in batch]


@pytest.mark.parametrize("rate", [8000, 16000])
def test_audio_of_other_rates_and_channels_is_as_in_torch(pair: tuple[TorchSession, Path], rate: int) -> None:
    torch_session, folder = pair
    stereo = np.stack(onnx_models.speech((rate, rate), seed=2), axis=1)
    here = EarlyExitASR.from_pretrained(folder.parent)
    there = EarlyExitASR(torch_session, 16000, here.config)
    texts = [(r.text, r.exit_layer) for r in (asr.transcribe(stereo, rate) for asr in (here, there))]
    assert texts[0] == texts[1]


def test_what_is_not_a_number_stops_nowhere_and_leaves_its_neighbours_alone(pair: tuple[TorchSession, Path]) -> None:
    torch_session, folder = pair
    broken, whole = np.full(16000, np.nan, np.float32), onnx_models.speech((16000,))[0]
    for session in (torch_session, OnnxSession(open_export(folder))):
        with pytest.raises(UtteranceError, match="not finite"):
            recognise(session, DecodingConfig(), [broken])
    # Nobody looks at what the one file is given: it goes on to the last exit, as a policy does whose evidence is broken.
    [(_, layer), neighbour] = self_stopping(folder, [broken, whole])
    assert layer == torch_session.exit_layers[-1] and neighbour == self_stopping(folder, [whole])[0]
