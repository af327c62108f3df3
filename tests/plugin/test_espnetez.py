"""espnetez (ESPnet 202511): its trainer builds and trains our classes once the plug-in's task has been imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_ee.host.compat import espnet_version
from espnet_ee.store.checkpoint import load_model
from tests import tiny

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]

# What somebody writes; the page for users shows the same.
TRAINING = """
import sys
import espnetez
import numpy as np
import yaml

import espnet_ee.plugin.task

folder = sys.argv[1]
TEXTS = [[3], [3, 4], [4, 2, 3], [5, 6]]


def speech(number):
    return np.random.default_rng(number).standard_normal(8000 + 1000 * number).astype(np.float32) * 0.1


data = espnetez.dataset.ESPnetEZDataset(
    list(range(len(TEXTS))),
    {"speech": speech, "text": lambda number: np.array(TEXTS[number])},
)
config = espnetez.config.from_yaml("asr", f"{folder}/train.yaml")
trainer = espnetez.Trainer(
    "asr", config, f"{folder}/exp", f"{folder}/stats", train_dataset=data, valid_dataset=data, ngpu=0, num_workers=0
)
trainer.collect_stats()
trainer.train()
"""
CONFIG = {**tiny.TRAINING, "token_list": tiny.TOKENS, "batch_type": "unsorted", "batch_size": 2, "max_epoch": 1}


@pytest.mark.skipif(espnet_version() != "202511", reason="espnetez belongs to ESPnet 202511")
def test_its_trainer_trains_an_early_exit_model(tmp_path):
    pytest.importorskip("six", reason="espnetez imports every task of ESPnet, and one of them six, which none installs")
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(CONFIG))
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    assert "loss_exit01" in done.stderr and "loss_exit02" in done.stderr
    assert load_model(tmp_path / "exp/config.yaml", tmp_path / "exp/1epoch.pth").encoder.exit_layers == (1, 2)
