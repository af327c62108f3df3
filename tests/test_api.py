"""From Python: a file or an array of any rate and kind gives the text that its samples at the model's rate give."""

from __future__ import annotations

import copy
import io
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import espnet_ee
from espnet_ee.api import EarlyExitASR
from espnet_ee.data.audio import resample
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.errors import UserError
from espnet_ee.policy.confidences import ConfidenceMap
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from tests import tiny

INT16 = np.random.default_rng(3).normal(0, 4000, 16000).astype(np.int16)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny.model(seed=2)


@pytest.fixture(scope="module")
def files(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return tiny.save(tmp_path_factory.mktemp("model"), model)


@pytest.fixture(scope="module")
def asr(files: tuple[str, str]) -> EarlyExitASR:
    return EarlyExitASR.from_files(*files)


@pytest.fixture
def heard(asr: EarlyExitASR, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What reaches the model."""
    batches: list[np.ndarray] = []
    start = asr.session.start
    monkeypatch.setattr(asr.session, "start", lambda batch: batches.extend(batch) or start(batch))
    return batches


def test_it_says_what_it_is(asr: EarlyExitASR) -> None:
    assert asr.sample_rate == 16000
    assert asr.exit_layers == (1, 2, 4)
    assert asr.transcribe(INT16, 16000).exit_layer == 4


def test_words_lie_in_the_audio(asr: EarlyExitASR, model: torch.nn.Module) -> None:
    assert asr.session.frame_seconds == 4 * 128 / 16000
    words = 0
    for layer, length in itertools.product(asr.exit_layers, (16000, 9000, 300)):
        result = EarlyExitASR(asr.session, 16000, FixedExitPolicy(layer)).transcribe(INT16[:length], 16000)
        assert " ".join(word.text for word in result.words) == result.text
        times = [time for word in result.words for time in (word.start, word.end)]
        assert times == sorted(times) and all(0 <= time <= length / 16000 for time in times)
        words += len(result.words)
    assert words
    assert TorchSession(model).frame_seconds is None


@pytest.mark.parametrize("kind", ["float32", "float64", "int16", "int32", "stereo", "uint8"])
def test_samples_of_every_kind_are_scaled(asr: EarlyExitASR, heard: list[np.ndarray], kind: str) -> None:
    floats = INT16 / 32768
    given = {
        "float32": floats.astype(np.float32),
        "float64": floats,
        "int16": INT16,
        "int32": INT16.astype(np.int32) << 16,
        "stereo": np.stack([INT16 // 2, INT16 - INT16 // 2], axis=1) * 2,
        "uint8": (INT16 // 256 + 128).astype(np.uint8),
    }[kind]
    expected = asr.recognise([floats.astype(np.float32)])[0]
    heard.clear()
    result = asr.transcribe(given, 16000)
    np.testing.assert_allclose(heard[0], floats, atol=1 / 128 if kind == "uint8" else 1e-7)
    assert heard[0].dtype == np.float32
    if kind not in ("uint8", "stereo"):
        assert (result.text, result.macs) == (expected.text, expected.macs)


def test_a_file_and_its_samples_give_the_same_whatever_the_rate(asr, heard, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", INT16, 8000)
    soundfile.write(tmp_path / "b.wav", np.stack([INT16, INT16], axis=1), 16000)
    from_file, from_samples = asr.transcribe(tmp_path / "a.flac"), asr.transcribe(INT16, 8000)
    assert from_file.text == from_samples.text
    np.testing.assert_array_equal(heard[0], heard[1])
    np.testing.assert_allclose(heard[0], resample(INT16, 8000, 16000) / 32768, atol=1e-7)
    assert asr.transcribe(str(tmp_path / "b.wav")).text == asr.transcribe(INT16, 16000).text


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (INT16, None, "rate"),
        *((INT16, rate, "rate of") for rate in (0, -1, 8000.5, float("nan"), float("inf"), "16000", True, (16000,))),
        (INT16, 2**40, "cannot become"),
        (INT16.astype(np.float32), 16000, r"\[-1, 1\]"),
        (INT16.astype(np.int64), 16000, "int64"),
        (np.ma.masked_array(INT16), 16000, "MaskedArray"),
        (np.full(100, np.nan), 16000, "not finite"),
        (np.zeros((2, 16000)), 16000, "channels"),
        (np.zeros(0), 16000, "no audio"),
        (np.zeros((4, 4, 4)), 16000, "no audio"),
    ],
)
def test_what_would_be_silently_wrong_is_said(asr: EarlyExitASR, samples: np.ndarray, rate: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        asr.transcribe(samples, rate)


def test_a_rate_and_samples_of_other_types_are_as_good(asr: EarlyExitASR, heard: list[np.ndarray]) -> None:
    odd = [
        (INT16, 8000.0),
        (INT16, np.float64(8000)),
        (INT16.astype(">i2"), np.int32(8000)),
    ]
    for samples, rate in [(INT16, 8000), *odd]:
        asr.transcribe(samples, rate)
    assert all(np.array_equal(samples, heard[0]) for samples in heard)


@pytest.mark.parametrize(
    ("path", "longest", "message"),
    [("a.wav", float("nan"), "pieces of at most nan"), ("a.wav", "20", "pieces of"), (INT16, 20.0, "not ndarray")],
)
def test_a_recording_that_cannot_be_cut_is_one_line(asr: EarlyExitASR, path: object, longest: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        asr.transcribe_recording(path, longest)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda files: EarlyExitASR.from_files(*files, policy=0.1), "policy 0.1: give"),
        (lambda files: EarlyExitASR.from_files(*files, policy={"policy": "fixed"}), "policy .*: give"),
        (lambda files: EarlyExitASR.from_pretrained(Path(files[0]).parent, engine="tensorflow"), "engine 'tensorflow'"),
        (lambda files: EarlyExitASR.from_pretrained(None), "not None"),
    ],
)
def test_what_the_command_line_refuses_is_refused_from_python_too(files, make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(files)


def test_threads_beyond_the_processors_are_not_started(asr: EarlyExitASR) -> None:
    before = torch.get_num_threads()
    try:
        asr.session.use_threads(100_000)
        assert torch.get_num_threads() <= (os.cpu_count() or 1)
    finally:
        torch.set_num_threads(before)


def test_integers_in_a_batch_are_refused_and_a_bad_file_is_named(asr: EarlyExitASR, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="int16"):
        asr.recognise([INT16])
    with pytest.raises(UserError, match="no array|not str"):
        asr.recognise(["a.wav"])
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"bad\.wav"):
        asr.transcribe(tmp_path / "bad.wav")
    soundfile.write(tmp_path / "a.wav", INT16, 16000)
    with pytest.raises(UserError, match="rate"):
        asr.transcribe(tmp_path / "a.wav", 8000)


def test_a_policy_is_given_in_every_form(asr: EarlyExitASR, files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "decode.yaml").write_text("policy: fixed\npolicy_conf: {exit_layer: 2}\n", encoding="utf-8")
    named = EarlyExitASR(asr.session, 16000, "fast", {"fast": DecodingConfig(FixedExitPolicy(1))})
    assert named.transcribe(INT16, 16000).exit_layer == 1
    for policy, layer in (
        (FixedExitPolicy(2), 2),
        (DecodingConfig(EntropyPolicy(float("inf"))), 1),
        (tmp_path / "decode.yaml", 2),
        (str(tmp_path / "decode.yaml"), 2),
        (None, 4),
        ("fast", 1),
    ):
        named.use(policy)
        assert named.transcribe(INT16, 16000).exit_layer == layer
    assert EarlyExitASR.from_files(*files, tmp_path / "decode.yaml").transcribe(INT16, 16000).exit_layer == 2
    with pytest.raises(UserError, match=r"slow.*fast"):
        named.use("slow")
    with pytest.raises(UserError, match="no exit after layer 3"):
        named.use(FixedExitPolicy(3))
    assert named.transcribe(INT16, 16000).exit_layer == 1  # what is refused changes nothing


def test_the_last_exit_by_name_tells_words_as_the_models_policies_do(asr: EarlyExitASR) -> None:
    words: dict[str, Any] = {
        "confidences": ConfidenceMap({4: ((0.0, 0.5), (1.0, 0.75))}),
        "word_exit": 1,
        "word_shift": (-0.1, -0.2),
    }
    named = EarlyExitASR(asr.session, 16000, "fixed", {"fast": DecodingConfig(FixedExitPolicy(1), **words)})
    assert named.config == DecodingConfig(FixedExitPolicy(4), **words) and named.policy_name == "fixed"
    own = {"mine": DecodingConfig(EntropyPolicy(0.1)), **named.configs}  # put beside them by hand: it knows nothing of words
    assert EarlyExitASR(asr.session, 16000, "fixed", own).config == named.config


def test_a_broken_model_says_so(model: torch.nn.Module) -> None:
    broken = copy.deepcopy(model)
    torch.nn.init.constant_(broken.ctc.ctc_lo.bias, float("nan"))
    with pytest.raises(UserError, match="exit 4 is not a number"):
        tiny.asr(broken).transcribe(INT16, 16000)


_WORKER = """
import pickle, sys, numpy as np
asr = pickle.load(open(sys.argv[1], "rb"))
results = [asr.transcribe(samples, 16000) for samples in np.load(sys.argv[2])]
print([(r.exit_layer, r.token_ids, r.macs) for r in results])
"""


@pytest.mark.process
def test_it_goes_to_another_process(asr: EarlyExitASR, tmp_path: Path) -> None:
    speech = np.stack([INT16, INT16[::-1] // 3])
    (tmp_path / "asr.pickle").write_bytes(pickle.dumps(EarlyExitASR(asr.session, 16000, EntropyPolicy(0.2))))
    np.save(tmp_path / "speech.npy", speech)
    command = [sys.executable, "-c", _WORKER, str(tmp_path / "asr.pickle"), str(tmp_path / "speech.npy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=300)
    assert done.returncode == 0, done.stderr
    here = [EarlyExitASR(asr.session, 16000, EntropyPolicy(0.2)).transcribe(samples, 16000) for samples in speech]
    assert done.stdout.splitlines()[-1] == str([(r.exit_layer, r.token_ids, r.macs) for r in here])


def test_a_copy_is_as_good(asr: EarlyExitASR) -> None:
    copied = pickle.load(io.BytesIO(pickle.dumps(asr)))
    assert copied.transcribe(INT16, 16000).text == asr.transcribe(INT16, 16000).text


def test_the_package_gives_it_without_loading_torch_before() -> None:
    assert espnet_ee.EarlyExitASR is EarlyExitASR
    with pytest.raises(AttributeError, match="Nothing"):
        _ = espnet_ee.Nothing
    program = "import sys, espnet_ee; print(espnet_ee.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [espnet_ee.__version__, "False"]
