"""A model made under one version of ESPnet says the same under the other, both ways.

The other interpreter is named by ESPNET_EE_OTHER_PYTHON, or found beside this one in tools/venv.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from espnet_ee.api import EarlyExitASR
from espnet_ee.host.compat import espnet_version
from espnet_ee.policy.fixed import FixedExitPolicy
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


def settings(backbone: str) -> dict:
    conf = {**tiny.BACKBONES[backbone][1], "exit_layers": [1, 2, 4], "exit_norm": "separate"}
    return {"encoder": f"early_exit_{backbone}", "encoder_conf": conf}


def make(folder: Path) -> None:
    """Saves a model of every encoder whose exits say different tokens for different frames."""
    for backbone in tiny.BACKBONES:
        model = tiny.model(seed=5, **settings(backbone))
        for name, parameter in model.named_parameters():
            if name.endswith("ctc_lo.weight"):
                torch.nn.init.normal_(parameter)
        (folder / backbone).mkdir(parents=True)
        tiny.save(folder / backbone, model, **settings(backbone))


def texts(folder: Path) -> dict[str, list[str]]:
    """What every exit of every saved model says of some noise."""
    random = np.random.default_rng(0)
    speech = [random.standard_normal(length).astype(np.float32) * 0.1 for length in (16000, 9000, 24000)]
    said = {}
    for backbone in tiny.BACKBONES:
        for exit_layer in (1, 2, 4):
            files = folder / backbone / "config.yaml", folder / backbone / "model.pth"
            recogniser = EarlyExitASR.from_files(*files, FixedExitPolicy(exit_layer))
            said[f"{backbone} {exit_layer}"] = [" ".join(result.tokens) for result in recogniser.recognise(speech)]
    return said


def other_python() -> str:
    """An interpreter with the other version; skips the test where there is none."""
    candidates = [os.environ.get("ESPNET_EE_OTHER_PYTHON"), *sorted(map(str, (ROOT / "tools").glob("venv/*/bin/python")))]
    ask = "from importlib.metadata import version; print(version('espnet'))"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", ask], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() != espnet_version():
            return candidate
    pytest.skip("no interpreter with the other ESPnet version; name one in ESPNET_EE_OTHER_PYTHON")


@pytest.mark.process
def test_a_model_of_either_version_says_the_same_in_both(tmp_path):
    other = other_python()
    make(tmp_path / "here")
    program = (
        "import json, sys; from pathlib import Path; from tests.host.test_two_versions import make, texts\n"
        "folder = Path(sys.argv[1]); make(folder / 'there')\n"
        "print(json.dumps([texts(folder / name) for name in ('here', 'there')]))"
    )
    done = subprocess.run([other, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    of_here, of_there = json.loads(done.stdout.splitlines()[-1])
    assert texts(tmp_path / "here") == of_here
    assert texts(tmp_path / "there") == of_there
    assert len({text for said in of_here.values() for text in said}) > 6  # or nothing was compared


def test_the_two_versions_name_the_subsampling_layer_differently(tmp_path):
    """Why loading needs a mapping: without it the test above could not fail."""
    make(tmp_path)
    names = torch.load(tmp_path / "conformer/model.pth", weights_only=True)
    assert ("encoder.embed.out.0.weight" in names) == (espnet_version() == "202511")
