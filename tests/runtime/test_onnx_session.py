"""An exported model gives, segment by segment, what its matrices give; each utterance leaves at its own exit."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ee.api import EarlyExitASR
from espnet_ee.cli.main import main
from espnet_ee.decode.loop import recognise
from espnet_ee.decode.session import UtteranceError
from espnet_ee.errors import UsageError, UserError
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.runtime.model import open_export
from espnet_ee.runtime.onnx_session import OnnxSession
from tests.runtime.exports import LAYERS, LEAST, TOKENS, expected, write_export

LENGTHS = (16000, 9000, 500, 100, 10, 24000)


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [(random.standard_normal(length) * random.uniform(0.001, 0.5)).astype(np.float32) for length in LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("package") / "onnx")


@pytest.fixture
def session(folder: Path) -> OnnxSession:
    return OnnxSession(open_export(folder))


def test_words_have_times_where_the_export_tells_a_frames_length(tmp_path: Path, speech: list[np.ndarray]) -> None:
    timed = OnnxSession(open_export(write_export(tmp_path / "onnx", frame_seconds=0.01)))
    results = recognise(timed, DecodingConfig(), speech)
    for samples, result in zip(speech, results, strict=True):
        assert " ".join(word.text for word in result.words) == result.text
        times = [time for word in result.words for time in (word.start, word.end)]
        assert times == sorted(times) and all(0 <= time <= len(samples) / 16000 for time in times)
    assert sum(len(result.words) for result in results) > 3


def test_every_exit_is_what_its_matrices_give(session: OnnxSession, speech: list[np.ndarray]) -> None:
    results = recognise(session, DecodingConfig(), speech, keep_every_exit=True)
    for samples, result in zip(speech, results, strict=True):
        features = session.export.features(samples)
        padded = np.pad(features, ((0, max(0, LEAST - len(features))), (0, 0)))
        assert [row.evidence.layer for row in result.rows] == list(LAYERS)
        for row, log_probs in zip(result.rows, expected(padded), strict=True):
            assert row.evidence.frames == len(log_probs)
            entropy = -(np.exp(log_probs) * log_probs).sum() / log_probs.size
            assert row.evidence.entropy == pytest.approx(entropy, rel=1e-4)
            assert row.evidence.score == pytest.approx(log_probs.max(axis=1).sum(), rel=1e-4)
            path = log_probs.argmax(axis=1)
            tokens = [token for place, token in enumerate(path) if token and (place == 0 or path[place - 1] != token)]
            assert list(row.evidence.tokens) == tokens
        assert result.macs == result.rows[-1].encoder_macs + sum(row.head_macs for row in result.rows)


def test_what_is_decoded_together_is_as_if_alone(session: OnnxSession, speech: list[np.ndarray]) -> None:
    entropies = sorted(row.rows[0].evidence.entropy for row in recognise(session, DecodingConfig(), speech, True))
    config = DecodingConfig(EntropyPolicy(entropies[2] * 1.0001))
    together = recognise(session, config, speech)
    alone = [recognise(session, config, [samples])[0] for samples in speech]
    assert [(r.exit_layer, r.token_ids, r.score, r.macs) for r in together] == [
        (r.exit_layer, r.token_ids, r.score, r.macs) for r in alone
    ]
    assert len({result.exit_layer for result in together}) > 1


def test_the_table_is_handed_over_where_it_is_wanted(session: OnnxSession, speech: list[np.ndarray]) -> None:
    state = session.advance(session.start(speech[:2]))
    assert session.read(state, [0])[0].log_probs is None
    (frames,) = session.read(state, [1], frozenset({"log_probs"}))
    del state  # what was read stays
    session.advance(session.start(speech))
    np.testing.assert_allclose(frames.log_probs, expected(session.export.features(speech[1]))[0], atol=1e-5)
    assert frames.vocabulary == len(TOKENS)


def test_the_first_exit_needs_no_upper_file(tmp_path: Path, speech: list[np.ndarray]) -> None:
    folder = write_export(tmp_path / "onnx")
    for name in ("segment_02.onnx", "segment_04.onnx"):
        (folder / name).unlink()
    asr = EarlyExitASR.from_pretrained(folder, FixedExitPolicy(1))
    assert asr.recognise(speech[:1])[0].exit_layer == 1
    asr.use(None)
    with pytest.raises(UserError, match=r"segment_02\.onnx: no such file, so exit 2"):
        asr.recognise(speech[:1])


def test_the_graphs_that_are_asked_for_are_taken(folder: Path, tmp_path: Path, speech: list[np.ndarray]) -> None:
    def score(source: Path, int8: bool | None) -> float:
        return EarlyExitASR.from_pretrained(source, int8=int8, engine="onnx").recognise(speech[:1])[0].score

    features = open_export(folder).features(speech[0])
    fp32, int8 = (expected(features, seed)[-1].max(axis=1).sum() for seed in (0, 1000))
    assert score(folder, None) == pytest.approx(fp32, rel=1e-4) == score(folder.parent, False)
    assert score(folder, True) == pytest.approx(int8, rel=1e-4)
    shutil.copytree(folder, tmp_path / "small")
    for path in (tmp_path / "small").glob("segment_0?.onnx"):
        path.unlink()
    assert score(tmp_path / "small", None) == pytest.approx(int8, rel=1e-4)
    with pytest.raises(UserError, match="no fp32 graphs"):
        score(tmp_path / "small", False)


def test_threads_change_nothing(session: OnnxSession, speech: list[np.ndarray]) -> None:
    before = recognise(session, DecodingConfig(), speech)
    session.use_threads(2)
    after = recognise(session, DecodingConfig(), speech)
    assert [(r.token_ids, r.exit_layer) for r in before] == [(r.token_ids, r.exit_layer) for r in after]


def test_memory_does_not_grow_with_the_lengths_that_were_seen(session: OnnxSession, speech: list[np.ndarray]) -> None:
    recognise(session, DecodingConfig(), speech[:1])
    assert session._loaded and not any(graph.get_session_options().enable_mem_pattern for graph in session._loaded.values())


def test_it_goes_to_another_process(session: OnnxSession, speech: list[np.ndarray]) -> None:
    before = recognise(session, DecodingConfig(), speech[:1])[0]
    again = recognise(pickle.loads(pickle.dumps(session)), DecodingConfig(), speech[:1])[0]
    assert (again.token_ids, again.score) == (before.token_ids, before.score)


def test_wrong_input_is_said_as_torch_says_it(session: OnnxSession, speech: list[np.ndarray]) -> None:
    for wrong, message in (
        (np.zeros(0, np.float32), "without samples"),
        (np.full(100, np.nan, np.float32), "not finite"),
        (np.full(100, 3000.0, np.float32), r"floats up to 3000 are not in \[-1, 1\]"),
        (np.zeros((5, 5), np.float32), "takes audio"),
        (np.zeros(100, np.int16), "int16"),
    ):
        with pytest.raises(UtteranceError, match=message) as stop:
            recognise(session, DecodingConfig(), [speech[0], wrong])
        assert stop.value.place == 1


def test_stored_features_come_in_as_they_are(tmp_path: Path) -> None:
    export = open_export(write_export(tmp_path / "onnx", features={"kind": "extracted", "n_mels": 16}))
    features = np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32)
    (result,) = recognise(OnnxSession(export), DecodingConfig(), [features])
    assert result.score == pytest.approx(expected(features)[-1].max(axis=1).sum(), rel=1e-4)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package without tensors: what a device gets."""
    write_export(tmp_path / "p/onnx")
    (tmp_path / "p/package.yaml").write_text("format: 1\ndefault: quick\n")
    for name, layer in (("quick", 1), ("slow", 2)):
        (tmp_path / f"p/decode_{name}.yaml").write_text(f"policy: fixed\npolicy_conf: {{exit_layer: {layer}}}\n")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    return tmp_path / "p"


def test_a_packages_policies_hold_for_its_graphs(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav = str(package.parent / "a.wav")
    for more, layer, policy in (
        ([], 1, "quick"),
        (["--policy", "slow"], 2, "slow"),
        (["--policy", "fixed", "--int8", "--num_threads", "2"], 4, "fixed"),
        (["--engine", "onnx", "--policy", str(package / "decode_slow.yaml")], 2, "slow"),
    ):
        main(["transcribe", wav, "--model", str(package), "--json", *more])
        line = json.loads(capsys.readouterr().out)
        assert (line["exit_layer"], line["policy"]) == (layer, policy)


def test_a_budget_is_kept_on_a_device_too(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav = package.parent / "a.wav"
    rows = "".join(f"fixed,exit {layer},{layer},{1e6 * layer}\n" for layer in LAYERS)
    (package / "exits.csv").write_text(f"kind,name,depth,macs_per_second\n{rows}promise,slow,2,2.1e6\n")
    for budget, layer, policy in ((1, 1, "exit 1"), (2.1, 2, "slow"), (4, 4, "exit 4")):
        main(["transcribe", str(wav), "--model", str(package), "--json", "--budget", str(budget)])
        line = json.loads(capsys.readouterr().out)
        assert (line["exit_layer"], line["policy"]) == (layer, policy)


def test_what_the_engines_cannot_is_said(package: Path) -> None:
    wav = str(package.parent / "a.wav")
    for more, error, message in (
        (["--engine", "onnx", "--device", "cuda"], UsageError, "ONNX Runtime computes on the CPU"),
        (["--engine", "torch", "--int8"], UsageError, "is for the engine onnx"),
        (["--engine", "torch"], UserError, r"config\.yaml"),
        (["--policy", "slow2"], UsageError, "the model came with quick, slow"),
        (["--policy", "entropy"], UsageError, "does not tell its threshold.*quick, slow"),
    ):
        with pytest.raises(error, match=message):
            main(["transcribe", wav, "--model", str(package), *more])
    with pytest.raises(UserError, match="holds no exported model"):
        EarlyExitASR.from_pretrained(package.parent, engine="onnx")
