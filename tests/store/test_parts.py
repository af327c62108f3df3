"""A model built from its classes is the one that ESPnet's task builds."""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np
import pytest
import torch

from espnet_ee.errors import UserError
from espnet_ee.plugin.classes import PREFIX, STOCK_ENCODERS
from espnet_ee.plugin.task import EarlyExitASRTask
from espnet_ee.store.build import build_model
from espnet_ee.store.parts import are_known, assemble
from tests import tiny

FEATURES = {"input_size": 80, "frontend": None, "frontend_conf": {}}
SPECAUG = {"specaug": "specaug", "specaug_conf": {"apply_time_mask": False, "freq_mask_width_range": [0, 3]}}
HYBRID = {
    "model": "espnet",
    "model_conf": {"ctc_weight": 0.3, "interctc_weight": 0.5},
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2, "linear_units": 8, "num_blocks": 1},
}
CONFIGS = {
    "default": {},
    "frontend settings": {"frontend_conf": {"fs": "8k", "n_fft": 256, "hop_length": 80, "n_mels": 40}},
    "kaldi_fbank": {"frontend": "kaldi_fbank", "frontend_conf": {"fs": 16000}},
    "features": FEATURES,
    "no normalisation": {"normalize": None},
    "global statistics": {**FEATURES, "normalize": "global_mvn"},
    "specaug": SPECAUG,
    "linear layer": {"preencoder": "linear", "preencoder_conf": {"input_size": 80, "output_size": 40}},
    "consistency": {**SPECAUG, "model_conf": {"ctc_weight": 1.0, "exit_terms": {"ctc": 1.0, "cr_ctc": 0.2}}},
    "deep heads": {"model_conf": {"ctc_weight": 1.0, "exit_heads": "lstm"}},
    "hybrid": HYBRID,
    "decoders": tiny.attention(lsm_weight=0.1),
    "one decoder": tiny.attention("shared"),
    "CTC's settings": {"ctc_conf": {"dropout_rate": 0.1}},
    **{
        name: {"encoder": PREFIX + name, "encoder_conf": {**conf, "exit_layers": [1, 4]}}
        for name, (_, conf) in tiny.BACKBONES.items()
    },
}


@pytest.fixture(params=CONFIGS)
def config(request, tmp_path):
    changes = CONFIGS[request.param]
    if changes.get("normalize") == "global_mvn":
        stats = tmp_path / "feats_stats.npz"
        np.savez(stats, count=np.array(9), sum=np.arange(80.0), sum_square=np.arange(80.0) ** 2 + 1)
        changes = {**changes, "normalize_conf": {"stats_file": str(stats)}}
    return tiny.config(**changes)


def test_it_is_the_tasks_model_bit_for_bit(config):
    assert are_known(config)
    torch.manual_seed(0)
    tasks = EarlyExitASRTask.build_model(argparse.Namespace(**config))
    after = torch.get_rng_state()
    torch.manual_seed(0)
    ours = assemble(config)
    assert torch.equal(torch.get_rng_state(), after)  # the same parts, made in the same order
    assert [(name, type(part)) for name, part in ours.named_modules()] == [
        (name, type(part)) for name, part in tasks.named_modules()
    ]
    assert repr(ours) == repr(tasks)
    assert plain(ours) == plain(tasks)
    expected = tasks.state_dict()
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


def plain(model: torch.nn.Module) -> list:
    """Every setting that a module keeps beside tensors and parts."""
    kinds = (bool, int, float, str, tuple)
    return [{key: repr(value) for key, value in vars(part).items() if isinstance(value, kinds)} for part in model.modules()]


@pytest.mark.parametrize(
    "changes",
    [
        {"frontend": "sliding_window", "frontend_conf": {"win_length": 400, "hop_length": 160}},
        {**HYBRID, "decoder": "rnn", "decoder_conf": {}},
    ],
)
def test_what_is_beyond_the_table_is_built_by_espnets_task(changes):
    config = tiny.config(**changes)
    assert not are_known(config)
    assert isinstance(build_model(config, "config.yaml"), torch.nn.Module)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"frontend_conf": {"fz": 1}}, "frontend_conf: unknown key 'fz'"),
        ({"normalize": "global_mvn"}, "normalize_conf: .*stats_file"),
        ({"ctc_conf": {"odim": 3}}, "ctc_conf: .*odim"),
        ({"model_conf": {"ctc_weight": 1.0, "encoder": None}}, "model_conf: .*encoder"),
        ({"encoder_conf": {"input_size": 3}}, "encoder_conf: unknown key 'input_size'"),
        ({"model_conf": {"ctc_weight": 1.0, "aux_ctc": {"a": 1}}}, "aux_ctc"),
        ({"postencoder": "length_adaptor"}, "postencoder: early_exit reads its exits off the encoder alone; remove it"),
        ({"frontend_conf": {"n_mels": "many"}}, "no model can be built"),
        ({"frontend": "nonsense"}, "no model can be built"),
        ({"token_list": None}, "no model can be built"),
        ({"normalize_conf": "text"}, "no model can be built"),
    ],
)
def test_what_is_wrong_with_a_part_is_one_line(changes, named):
    with pytest.raises(UserError, match=f"(?s)^here.yaml: .*{named}"):
        build_model(tiny.config(**changes), "here.yaml")


def test_the_stock_encoders_are_those_of_espnets_table():
    from espnet2.tasks.asr import encoder_choices

    assert set(STOCK_ENCODERS) == set(tiny.BACKBONES)
    for name, cls in STOCK_ENCODERS.items():
        assert encoder_choices.get_class(name) is cls


@pytest.mark.process
def test_reading_a_model_imports_no_task(tmp_path):
    files = tiny.save(tmp_path, tiny.model())
    program = (
        "import sys\nfrom espnet_ee.api import EarlyExitASR\nEarlyExitASR.from_files(*sys.argv[1:])\n"
        "print('espnet2.asr.espnet_model' in sys.modules, [name for name in sys.modules if name.startswith('espnet2.tasks')])"
    )
    done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True []"
