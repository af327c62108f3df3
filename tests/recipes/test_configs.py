"""Every YAML of the recipes is a training configuration, plain, and builds by ESPnet's dry run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in ROOT.glob("egs/*/*/conf/*.yaml") if not path.is_symlink())

# Importing ESPnet takes many seconds: one process builds them all.
DRY_RUNS = """
import json, pathlib, sys, traceback
from espnet_ee.plugin.task import EarlyExitASRTask
token_list, output, *configs = sys.argv[1:]
problems = {}
pretrained = []
if config_names := [config for config in configs if "_base.yaml" in config]:
    # Nothing is downloaded: a tiny model of as many blocks in place of what the configuration names.
    try:
        from transformers import Wav2Vec2Config, Wav2Vec2Model
    except ImportError:
        configs = [config for config in configs if config not in config_names]
    else:
        sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 8, "conv_dim": [8] * 7}
        positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
        Wav2Vec2Model(Wav2Vec2Config(**sizes, **positions)).save_pretrained(f"{output}/pretrained")
        pretrained = ["--encoder_conf", f"pretrained={output}/pretrained"]
for number, config in enumerate(configs):
    # Of no training there are statistics yet.
    own = ["--normalize", "none"] if "normalize: global_mvn" in pathlib.Path(config).read_text(encoding="utf-8") else []
    try:
        EarlyExitASRTask.main(cmd=[
            "--config", config, "--iterator_type", "none", "--dry_run", "true", "--token_list", token_list,
            "--token_type", "char", "--output_dir", f"{output}/{number}", "--ngpu", "0", *own,
            *(pretrained if config in config_names else []),
        ])
    except BaseException:  # SystemExit, too: that is how argparse refuses a key
        problems[config] = traceback.format_exc()
pathlib.Path(output, "problems.json").write_text(json.dumps(problems), encoding="utf-8")
"""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Traceback by training configuration that does not build."""
    folder = tmp_path_factory.mktemp("dry_runs")
    (folder / "tokens.txt").write_text("<blank>\n<unk>\na\nb\n<space>\n<sos/eos>\n", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", DRY_RUNS, str(folder / "tokens.txt"), str(folder), *map(str, CONFIGS)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / "problems.json").read_text(encoding="utf-8"))


def test_no_threshold_is_written_by_hand():
    assert CONFIGS and all(path.name.startswith("train") for path in CONFIGS), "decoding configurations are calibrated"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_numbers_are_numbers(path: Path):
    text = path.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    # YAML reads 1e-3 as a string.
    assert not re.search(r":\s*[-+]?\d+[eE]", text), "write 1.0e-3, not 1e-3"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
@pytest.mark.process
def test_training_configurations_build(path: Path, problems: dict[str, str]):
    assert str(path) not in problems, problems[str(path)]


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_models_are_chosen_by_what_the_model_reports(path: Path):
    """ESPnet's default criterion is an accuracy that a model without a decoder never has: it would keep epoch 1."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    reported = {"loss", *(f"cer_exit{layer:02d}" for layer in config["encoder_conf"]["exit_layers"])}
    ((phase, name, order),) = config["best_model_criterion"]
    assert (phase, order) == ("valid", "min")
    assert name in reported
    assert config["batch_type"] == "numel"


@pytest.mark.parametrize("seconds", [1, 4, 10])
def test_the_fast_conformer_of_an4_costs_less_than_three_fifths_at_every_exit(seconds: int):
    from espnet_ee.plugin.classes import ENCODERS

    costs = []
    for name in ("train_ee_fast_conformer", "train_ee_conformer"):
        config = yaml.safe_load((ROOT / f"egs/an4/asr1/conf/{name}.yaml").read_text(encoding="utf-8"))
        encoder = ENCODERS[config["encoder"]](config["frontend_conf"]["n_mels"], **config["encoder_conf"])
        costs.append([encoder.macs().encoder_macs(layer, 100 * seconds) for layer in encoder.exit_layers])
    # Less a hundredth, because the heads cost the same in both.
    assert all(fast < 0.59 * stock for fast, stock in zip(*costs, strict=True)), costs
