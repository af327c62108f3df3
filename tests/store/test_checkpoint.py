"""A checkpoint loads whole or not at all, and runs no code."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml

from espnet_ee.errors import UserError
from espnet_ee.host.compat import rename_keys
from espnet_ee.store.checkpoint import load_model
from espnet_ee.store.train_config import read_train_config, sampling_rate
from tests import tiny


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny.model()


def test_what_was_saved_is_loaded(model, tmp_path):
    loaded = load_model(*tiny.save(tmp_path, model))
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize("old", [True, False])
def test_both_versions_names_of_the_subsampling_layer_load(model, tmp_path, old):
    state = {}
    for name, value in model.state_dict().items():
        plain = name.replace(".embed.out.0.", ".embed.out.")
        state[plain.replace(".embed.out.", ".embed.out.0.") if old else plain] = value
    config, path = tiny.save(tmp_path, model)
    torch.save(state, path)
    loaded = load_model(config, path)
    assert torch.equal(next(iter(loaded.encoder.embed.out.parameters())), next(iter(model.encoder.embed.out.parameters())))


def test_what_espnet3_writes_is_loaded(model, tmp_path):
    """Checkpoints of Lightning, and a configuration that names the file of the tokens."""
    (tmp_path / "tokens.txt").write_text("".join(f"{token}\n" for token in tiny.TOKENS))
    config, path = tiny.save(tmp_path, model, token_list=str(tmp_path / "tokens.txt"))
    torch.save({"pytorch-lightning_version": "2.6", "epoch": 1, "state_dict": model.state_dict()}, path)
    loaded = load_model(config, path)
    assert loaded.token_list == tiny.TOKENS
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    torch.save({"pytorch-lightning_version": "2.6", "epoch": 1}, path)
    with pytest.raises(UserError, match="not a model's parameters"):
        load_model(config, path)


def test_renaming_leaves_names_that_fit():
    state = {"encoder.embed.out.0.weight": torch.zeros(1), "ctc.x": torch.ones(1)}
    assert rename_keys(state, {"encoder.embed.out.0.weight", "ctc.x"}).keys() == state.keys()


def test_a_missing_head_is_named(model, tmp_path):
    config, path = tiny.save(tmp_path, model)
    state = model.state_dict()
    del state["exit_ctc.2.ctc_lo.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"model.pth: lacks the head of exit 2 .*exit_layers"):
        load_model(config, path)


def test_a_missing_norm_is_named(model, tmp_path):
    config, path = tiny.save(tmp_path, model)
    state = model.state_dict()
    del state["encoder.exit_norms.1.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match="lacks the norm of exit 1"):
        load_model(config, path)


def test_parameters_left_over_are_named(model, tmp_path):
    conf = {**tiny.CONFORMER, "exit_layers": [2, 4], "exit_norm": "separate"}
    config, path = tiny.save(tmp_path, model, encoder_conf=conf)
    with pytest.raises(UserError, match="has the norm of exit 1"):
        load_model(config, path)


def test_another_size_is_named(model, tmp_path):
    config, path = tiny.save(tmp_path, model, token_list=[*tiny.TOKENS[:-1], "E", "<sos/eos>"])
    with pytest.raises(UserError, match="has shape .* asks for"):
        load_model(config, path)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda payload, path: Path(path).write_bytes(pickle.dumps(payload))])
def test_a_pickle_with_a_payload_is_refused(model, tmp_path, write):
    config, path = tiny.save(tmp_path, model)
    write(Payload(tmp_path / "pwned"), path)
    with pytest.raises(UserError, match="tensors only, refused"):
        load_model(config, path)
    assert not (tmp_path / "pwned").exists()


def test_a_trainers_checkpoint_is_not_a_model(model, tmp_path):
    config, path = tiny.save(tmp_path, model)
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    with pytest.raises(UserError, match="not checkpoint.pth"):
        load_model(config, path)


def test_garbage_is_refused(model, tmp_path):
    config, path = tiny.save(tmp_path, model)
    (tmp_path / "model.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="model.pth"):
        load_model(config, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder: [", "not plain YAML"),
        ("!!python/object/apply:os.mkdir [pwned]", "not plain YAML"),
        ("- a", "must be 'key: value' lines"),
        ("token_list: [a]", "lacks the key 'encoder'"),
    ],
)
def test_bad_configurations_are_refused(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_train_config(tmp_path / "config.yaml")


def test_missing_files_are_named(model, tmp_path):
    with pytest.raises(UserError, match="config.yaml: no such file"):
        load_model(tmp_path / "config.yaml", tmp_path / "model.pth")
    config, _path = tiny.save(tmp_path, model)
    with pytest.raises(UserError, match="other.pth: no such file"):
        load_model(config, tmp_path / "other.pth")


def test_a_missing_statistics_file_is_named(model, tmp_path):
    config, path = tiny.save(tmp_path, model, normalize="global_mvn", normalize_conf={"stats_file": "nowhere/feats_stats.npz"})
    with pytest.raises(UserError, match="nowhere/feats_stats.npz: no such file"):
        load_model(config, path)


def test_an_encoder_without_exits_is_refused(tmp_path):
    config = tiny.config(encoder="conformer", encoder_conf=tiny.CONFORMER, model="espnet")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="has no exits"):
        load_model(tmp_path / "config.yaml", tmp_path / "model.pth")


@pytest.mark.parametrize(("given", "rate"), [("16k", 16000), (8000, 8000), ("22.05k", 22050), (None, 16000)])
def test_sampling_rate(given, rate):
    assert sampling_rate({"frontend_conf": {} if given is None else {"fs": given}}) == rate
