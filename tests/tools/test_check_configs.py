"""The script that counts what becomes of ESPnet's configurations."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"output_size": 16, "attention_heads": 2, "num_blocks": 3, "linear_units": 24}
ATTENTION = {
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2},
    "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1},
}
RECIPES = {
    "a/asr1/conf/train_conformer.yaml": {"encoder": "conformer", "encoder_conf": SIZES, "normalize": "global_mvn", **ATTENTION},
    "a/asr1/conf/train_trimming.yaml": {"encoder": "transformer", "encoder_conf": {**SIZES, "ctc_trim": True}},
    "a/asr1/conf/train_wavlm.yaml": {
        "encoder": "e_branchformer",
        "encoder_conf": {**SIZES, "layer_drop_rate": 0.1, "input_layer": "conv1d2"},
        "frontend": "s3prl",
        "frontend_conf": {"frontend_conf": {"upstream": "wavlm_large"}},
        "preencoder": "linear",
        "preencoder_conf": {"input_size": 100, "output_size": 24},
    },
    "a/asr1/conf/train_two_frontends.yaml": {
        "encoder": "transformer",
        "encoder_conf": SIZES,
        "frontend": "fused",
        "frontend_conf": {"frontends": [{"frontend_type": "default"}, {"frontend_type": "s3prl"}], "proj_dim": 50},
        "preencoder": "linear",
        "preencoder_conf": {"input_size": 80, "output_size": 24},
    },
    "b/asr1/conf/train_rnn.yaml": {"encoder": "vgg_rnn", "encoder_conf": {}},
    "b/asr1/conf/train_typing_error.yaml": {"encoder": "transformer", "encoder_conf": SIZES, "no_such_key": 1},
    "b/asr1/conf/decode.yaml": {"ctc_weight": 0.3},
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_configs", ROOT / "tools/check_configs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_configs"] = module
    spec.loader.exec_module(module)
    return module


def test_every_training_configuration_has_a_verdict(tool: ModuleType, tmp_path: Path) -> None:
    for name, config in RECIPES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(yaml.safe_dump(config))
    (tmp_path / "broken.yaml").write_text("a: [")
    verdicts = list(tool.check_folder(tmp_path))
    said = {str(verdict.path.relative_to(tmp_path)): (verdict.kind, verdict.reason) for verdict in verdicts}
    assert said == {
        "a/asr1/conf/train_conformer.yaml": ("builds", ""),
        "a/asr1/conf/train_trimming.yaml": (
            "refused",
            "encoder_conf: ctc_trim True: an early exit cannot honour it; remove it",
        ),
        "a/asr1/conf/train_two_frontends.yaml": (
            "refused",
            "preencoder_conf: input_size is 80, where the frontend gives 100; write 100",
        ),
        "a/asr1/conf/train_wavlm.yaml": ("builds", "given frontend s3prl"),
        "b/asr1/conf/train_rnn.yaml": ("other encoder", "vgg_rnn"),
        "b/asr1/conf/train_typing_error.yaml": ("not of this ESPnet", "unrecognized arguments: no_such_key"),
    }
    assert tool.summary(verdicts)[1:4] == [
        "2 of 4 configurations build",
        "1\tbuilds: given frontend s3prl",
        "1\trefused: encoder_conf: ctc_trim True: an early exit cannot honour it; remove it",
    ]
