"""From a wav file to its text where torch, ESPnet, SciPy and sentencepiece are not there: what a device has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ee.score.grid import read_grid
from tests.runtime.exports import write_export
from tests.score.conftest import make_references, write_every_exit

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = ("torch", "torchaudio", "espnet", "espnet2", "espnet3", "scipy", "sentencepiece", "onnx", "librosa", "kaldiio", "omniio",
           "jiwer", "matplotlib", "safetensors", "soxr", "huggingface_hub")  # fmt: skip
_PROGRAM = f"""
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Nothing())
from espnet_ee.cli.main import entry
entry()
"""


def command(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", _PROGRAM, *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with its export, and audio at three rates."""
    made = tmp_path_factory.mktemp("device")
    write_export(made / "onnx")
    (made / "package.yaml").write_text("format: 1\ndefault: quick\n")
    (made / "config.yaml").write_text("encoder: early_exit_conformer\n")
    (made / "decode_quick.yaml").write_text("policy: entropy\npolicy_conf: {threshold: 0.2}\n")
    samples = np.random.default_rng(0).normal(0, 0.1, (48000, 2))
    for rate in (8000, 16000, 44100):
        soundfile.write(made / f"{rate}.wav", samples[:rate], rate)
    return made


def test_audio_of_any_rate_becomes_text(folder: Path) -> None:
    for model in (folder, folder / "onnx"):
        done = command("transcribe", *sorted(folder.glob("*.wav")), "--model", model)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 3 and all(line.split("\t")[1].strip() for line in done.stdout.splitlines())


def test_a_package_that_is_missing_is_one_line_with_its_extra(folder: Path) -> None:
    for words, package, extra in (
        (("transcribe", folder / "16000.wav", "--model", folder, "--engine", "torch"), "torch", "espnet"),
        (("transcribe", folder / "16000.wav", "--model", "owner/model"), "huggingface_hub", "hub"),
    ):
        done = command(*words)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert f"{package} is not installed; in the project's folder: pip install -e '.[{extra}]'" in done.stderr


def test_a_folder_without_a_model_is_said_and_not_that_torch_is_missing(folder: Path, tmp_path: Path) -> None:
    for model, reason in ((tmp_path, "holds no model"), (tmp_path / "none", "no such folder")):
        done = command("transcribe", folder / "16000.wav", "--model", model)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"{model}: {reason}" in done.stderr, done.stderr


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    """The options that name a decoding of every exit."""
    made = tmp_path_factory.mktemp("dev")
    write_every_exit(made, "abcdef")
    (made / "text").write_text("".join(f"{utt} {text}\n" for utt, text in make_references().items()), encoding="utf-8")
    return "--evidence", made / "evidence.tsv", "--text", made / "text"


def test_evidence_is_replayed_and_calibrated_on_a_device(evidence: tuple[str | Path, ...], tmp_path: Path) -> None:
    """What aligns texts or smooths error rates is asked for by the extra that brings it, and only where it is needed."""
    calibrate = ("calibrate", *evidence, "--out", tmp_path / "out", "--policies", "entropy", "--targets")
    for words in (("replay", *evidence, "--policy", "entropy"), (*calibrate, "mean_layer=4")):
        done = command(*words)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert "jiwer is not installed; in the project's folder: pip install -e '.[score]'" in done.stderr
    read_grid(Path(evidence[1]), Path(evidence[3]), keep=True)  # aligned once, where jiwer is
    for words in (("replay", *evidence, "--policy", "entropy"), (*calibrate, "mean_layer=4")):
        done = command(*words)
        assert done.returncode == 0 and done.stdout, done.stderr
    done = command(*calibrate, "wer_loss=1")
    assert "scipy is not installed; in the project's folder: pip install -e '.[score]'" in done.stderr
