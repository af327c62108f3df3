"""espnet3 (ESPnet 202611): a recipe of its own kind trains our task by its dotted path and stops utterances early."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("espnet3", reason="espnet3 belongs to ESPnet 202611")

from espnet3.systems.esp2_asr.inference import ASRInferenceRunner  # noqa: E402 - nothing to test without it

from espnet_ee.api import EarlyExitASR  # noqa: E402
from espnet_ee.errors import UserError  # noqa: E402
from espnet_ee.espnet3 import EarlyExitInferenceRunner, EarlyExitSpeech2Text  # noqa: E402
from espnet_ee.policy.entropy import EntropyPolicy  # noqa: E402
from espnet_ee.store.checkpoint import load_model  # noqa: E402

pytestmark = pytest.mark.process

# All that a recipe of espnet3 consists of, besides two configurations.
RUN = """
from espnet3.systems.esp2_asr.system import ASRSystem
from espnet3.systems.launch import launch

if __name__ == "__main__":
    launch(ASRSystem)
"""
DATASET = """
from pathlib import Path
import numpy as np
from espnet3.components.data.base_dataset import BaseDataset
from espnet3.contract import Field


class Dataset(BaseDataset):
    fields = (Field("speech", "audio"), Field("text", "text"))

    def __init__(self, split):
        self.texts = ["A", "AB", "B A", "CD", "DAB", "A C"]

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return {"speech": np.load(Path(__file__).with_name(f"{index}.npy")), "text": self.texts[int(index)]}
"""
SPLIT = [{"data_src_args": {"split": "train"}}]
TRAINING = {
    "parallel": None,  # no worker processes
    "task": "espnet_ee.plugin.task.EarlyExitASRTask",
    "dataset": {
        "train": SPLIT,
        "valid": SPLIT,
        "preprocessor": {
            "_target_": "espnet2.train.preprocessor.CommonPreprocessor",
            "token_type": "char",
            "token_list": "${recipe_dir}/tokens.txt",
        },
    },
    "tokenizer": {"model_type": "char", "save_path": "${recipe_dir}/tokenizer"},
    "model": {
        "token_list": "${recipe_dir}/tokens.txt",
        "encoder": "early_exit_conformer",
        "encoder_conf": {**tiny.CONFORMER, "exit_layers": [1, 2, 4], "exit_norm": "separate"},
        "model": "early_exit",
        "model_conf": {"ctc_weight": 1.0},
        "frontend_conf": {"n_fft": 512, "hop_length": 160},
    },
    "best_model_criterion": [["valid/loss", 2, "min"]],
    "seed": 0,
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "limit_train_batches": 1},
}
THRESHOLD = 0.18
INFERENCE = {
    "parallel": None,
    "dataset": {"test": [{"name": "test", "data_src_args": {"split": "test"}}]},
    "model": {
        "_target_": "espnet_ee.espnet3.EarlyExitSpeech2Text",
        "asr_train_config": "${exp_dir}/config.yaml",
        "asr_model_file": "${exp_dir}/epoch1_step2_valid.loss.ckpt",
        "policy": "entropy",
        "policy_conf": {"threshold": THRESHOLD},
    },
    "runner": {"_target_": "espnet_ee.espnet3.EarlyExitInferenceRunner"},
    "contract": {"outputs": {"exit_layer": {"kind": "number"}, "macs": {"kind": "number"}}},
}


def speech() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(random.standard_normal(8000 + 1000 * number) * 0.1).astype(np.float32) for number in range(6)]


def run(recipe: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "run.py", "--training_config", "conf/training.yaml", *words],
        cwd=recipe,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The recipe after its stages collect_stats, train and infer."""
    folder = tmp_path_factory.mktemp("recipe")
    for name in ("dataset", "conf", "tokenizer"):
        (folder / name).mkdir()
    (folder / "run.py").write_text(RUN)
    (folder / "dataset/__init__.py").write_text(DATASET)
    (folder / "tokens.txt").write_text("".join(f"{token}\n" for token in tiny.TOKENS))
    for name in ("char.model", "char.vocab"):  # espnet3 trains a tokenizer unless it finds one
        (folder / "tokenizer" / name).touch()
    for number, samples in enumerate(speech()):
        np.save(folder / f"dataset/{number}.npy", samples)
    for name, content in (("training", TRAINING), ("inference", INFERENCE)):
        (folder / f"conf/{name}.yaml").write_text(yaml.safe_dump(content))
    run(folder, "--stages", "collect_stats", "train", "infer", "--inference_config", "conf/inference.yaml")
    return folder


def read_scp(path: Path) -> list[str]:
    lines = [line.split(" ", 1) for line in path.read_text().splitlines()]
    assert [key for key, _ in lines] == [str(number) for number in range(len(lines))]
    return [value for _, value in lines]


def test_its_stages_train_and_recognise_with_our_policy(recipe: Path, monkeypatch):
    monkeypatch.chdir(recipe)
    config, best = "exp/training/config.yaml", "exp/training/epoch1_step2_valid.loss.ckpt"
    recogniser = EarlyExitASR.from_files(config, best, EntropyPolicy(THRESHOLD))
    results = [recogniser.recognise([samples])[0] for samples in speech()]
    written = recipe / "exp/training/inference/test"
    assert read_scp(written / "text.scp") == [result.text for result in results]
    assert read_scp(written / "exit_layer.scp") == [str(result.exit_layer) for result in results]
    assert read_scp(written / "macs.scp") == [str(result.macs) for result in results]
    averaged = load_model(config, "exp/training/valid.loss.ave_1best.pth")
    assert averaged.encoder.exit_layers == (1, 2, 4) and averaged.token_list == tiny.TOKENS


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    model = tiny.model(seed=5)
    config, checkpoint = tiny.save(tmp_path_factory.mktemp("model"), model)
    return {"asr_train_config": config, "asr_model_file": checkpoint}


@pytest.mark.parametrize(
    ("policy", "exits"),
    [
        ({}, {4}),
        ({"policy": "fixed", "policy_conf": {"exit_layer": 2}}, {2}),
        ({"policy": "entropy", "policy_conf": {"threshold": 1}}, {1}),
    ],
)
def test_the_policy_decides_where_utterances_stop(files, policy, exits):
    target = EarlyExitSpeech2Text(**files, **policy, device="cpu")
    batch = speech()[:3]
    named = EarlyExitInferenceRunner.format_output(target(batch), batched=True)
    assert {output["exit_layer"] for output in named} == exits
    assert named == [EarlyExitInferenceRunner.format_output(target(samples), batched=False) for samples in batch]
    # With espnet3's own runner the target alone is exchanged, and the text is what is written.
    assert ASRInferenceRunner.format_output(target(batch), batched=True) == [{"text": output["text"]} for output in named]
    text, tokens, numbers, recognition = target(batch[0])[0]
    assert (text, tuple(tokens), tuple(numbers)) == (recognition.text, recognition.tokens, recognition.token_ids)


def test_a_policy_that_does_not_fit_is_named(files):
    with pytest.raises(UserError, match="policy 'entropie' is unknown"):
        EarlyExitSpeech2Text(**files, policy="entropie", policy_conf={})
