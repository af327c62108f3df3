"""A checkpoint loads whole or not at all, and runs no code."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml

from espnet_ee.data.features import read_frontend
from espnet_ee.encoder.stock import EarlyExitConformerEncoder
from espnet_ee.errors import UsageError, UserError
from espnet_ee.frontend.kaldi_fbank import KaldiFbank
from espnet_ee.host.compat import rename_keys
from espnet_ee.store.checkpoint import experiment_files, load_model
from espnet_ee.store.package import open_model
from espnet_ee.store.train_config import locate, read_train_config, sampling_rate
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
    with pytest.raises(UserError, match="model.pth"):
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


@pytest.mark.parametrize("write", [torch.save, lambda payload, path: Path(path).write_bytes(pickle.dumps(payload, protocol=2))])
def test_a_pickle_with_a_payload_is_refused(model, tmp_path, write):
    config, path = tiny.save(tmp_path, model)
    write(Payload(tmp_path / "pwned"), path)
    with pytest.raises(UserError, match="model.pth.*refused"):
        load_model(config, path)
    assert not (tmp_path / "pwned").exists()


def test_a_trainers_checkpoint_is_not_a_model(model, tmp_path):
    config, path = tiny.save(tmp_path, model)
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    with pytest.raises(UserError, match="model.pth.*checkpoint.pth"):
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
        ("- a", "config.yaml"),
        ("token_list: [a]", "'encoder'"),
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


def experiment(folder: Path, *names: str) -> Path:
    for name in ("config.yaml", "checkpoint.pth", "images/loss.pth", *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


@pytest.mark.parametrize(
    ("names", "file"),
    [
        (["valid.loss.ave.pth", "valid.cer_ctc.ave.pth", "valid.loss.best.pth", "1epoch.pth"], "valid.loss.ave.pth"),
        (["valid.cer_ctc.ave.pth", "valid.loss.best.pth", "1epoch.pth"], "valid.cer_ctc.ave.pth"),
        (["valid.acc.best.pth", "1epoch.pth", "2epoch.pth"], "valid.acc.best.pth"),
        (["model.pth"], "model.pth"),
        (["valid.loss.ave_10best.pth"], "valid.loss.ave_10best.pth"),  # ESPnet's pack follows links
        (["model.safetensors", "package.yaml"], "model.safetensors"),
    ],
)
def test_the_model_file_of_an_experiment(tmp_path, names, file):
    assert experiment_files(experiment(tmp_path, *names)) == (tmp_path / "config.yaml", tmp_path / file)


def test_a_model_file_is_asked_for_by_name_or_by_path(tmp_path, monkeypatch):
    folder = experiment(tmp_path / "exp", "1epoch.pth", "valid.loss.ave.pth")
    (tmp_path / "other.pth").write_text("x")
    monkeypatch.chdir(tmp_path)
    for asked in ("1epoch.pth", folder / "1epoch.pth", "exp/1epoch.pth"):
        assert experiment_files(folder, asked)[1].samefile(folder / "1epoch.pth")
    assert experiment_files("exp", "other.pth")[1].samefile("other.pth")


@pytest.mark.parametrize(
    ("names", "asked", "words"),
    [
        (
            ["valid.cer.ave.pth", "valid.acc.ave.pth", "1epoch.pth"],
            None,
            ["valid.cer.ave.pth", "valid.acc.ave.pth", "1epoch.pth"],
        ),
        (["1epoch.pth", "2epoch.pth"], None, ["1epoch.pth", "2epoch.pth"]),
        (["valid.loss.ave.pth"], "valid.acc.ave.pth", ["valid.acc.ave.pth: no such file", "valid.loss.ave.pth"]),
        ([], None, ["no training has finished an epoch"]),
    ],
)
def test_where_there_is_no_one_model_file_those_there_are_named(tmp_path, names, asked, words):
    with pytest.raises(UserError) as refusal:
        experiment_files(experiment(tmp_path, *names), asked)
    assert all(word in str(refusal.value) for word in words) and "checkpoint.pth" not in str(refusal.value)


def test_a_folder_that_is_no_experiment(tmp_path):
    with pytest.raises(UserError, match="config.yaml: no such file.* package"):
        experiment_files(tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cuda:x", "", "meta", "hpu", "xla", "xpu", "privateuseone"])
def test_a_device_that_cannot_compute_is_one_line(model, tmp_path, device):
    with pytest.raises(UsageError, match=f"device {device}: .*cpu"):
        load_model(*tiny.save(tmp_path, model), device)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_conf": {**tiny.CONFORMER, "exit_layers": [2, 4], "attention_heads": 0}},
        {"encoder_conf": {**tiny.CONFORMER, "exit_layers": [2, 4], "output_size": "many"}},
        {"encoder_conf": {**tiny.CONFORMER, "exit_layers": [2, 4], "lineer_units": 3}},
        {"encoder_conf": {**tiny.CONFORMER, "exit_layers": [2, 5]}},
        {"frontend_conf": {"n_fft": 0}},
        {"frontend_conf": {"fss": 16000}},
        {"ctc_conf": {"dropout": 0.1}},
        {"model_conf": {"ctc_weight": 0.5}},
        {"model_conf": {"ctc_weight": 1.0, "aux_ctc": {"a": "b"}}},
        {"decoder": "transducer"},
        {"decoder": "mlm"},
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_line_that_names_the_file(model, tmp_path, changes):
    config, path = tiny.save(tmp_path, model, **changes)
    with pytest.raises(UserError, match="config.yaml: ") as refusal:
        load_model(config, path)
    assert refusal.value.exit_status == 1


@pytest.mark.parametrize("raised", [TypeError, AttributeError, RuntimeError, KeyError, ValueError])
def test_a_bug_of_ours_keeps_its_traceback(model, tmp_path, monkeypatch, raised):
    """Also where a library fails that our code called, as the function below does."""

    def library(*_: object) -> None:
        raise raised("ours")

    monkeypatch.setattr(EarlyExitConformerEncoder, "add_exit_norms", library)
    with pytest.raises(raised, match="ours"):
        load_model(*tiny.save(tmp_path, model))


def test_a_decoder_that_is_not_used_is_said(model, tmp_path, caplog):
    decoder = {"decoder": "transformer", "decoder_conf": {"linear_units": 8, "num_blocks": 1, "attention_heads": 2}}
    for weight, said in ((0.3, True), (1.0, False)):  # with 1.0 ESPnet itself leaves it out
        settings = {**decoder, "model": "espnet", "model_conf": {"ctc_weight": weight}}
        load_model(*tiny.save(tmp_path, tiny.model(**settings), **settings))
        assert ("config.yaml: its decoder (transformer) is not used" in caplog.text) == said
        caplog.clear()


def test_a_missing_statistics_file_is_named(model, tmp_path):
    config, path = tiny.save(tmp_path, model, normalize="global_mvn", normalize_conf={"stats_file": "nowhere/feats_stats.npz"})
    with pytest.raises(UserError, match="nowhere/feats_stats.npz: no such file"):
        load_model(config, path)


def test_an_encoder_without_exits_is_refused(tmp_path):
    config = tiny.config(encoder="conformer", encoder_conf=tiny.CONFORMER, model="espnet")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="has no exits"):
        load_model(tmp_path / "config.yaml", tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("given", "rate"), [("16k", 16000), (8000, 8000), ("22.05k", 22050), ("16K", 16000), (16000.0, 16000), (None, 16000)]
)
def test_sampling_rate(given, rate):
    assert sampling_rate({"frontend_conf": {} if given is None else {"fs": given}}) == rate


def test_a_frontend_of_no_settings_is_one_line():
    with pytest.raises(UserError, match="frontend_conf: 'fs 8000': write 'key: value' lines"):
        sampling_rate({"frontend_conf": "fs 8000"})


@pytest.mark.parametrize("rate", ["fast", "k", "", 0, -8000, "infk", "nan", True, []])
def test_what_is_no_sampling_rate_is_said_wherever_it_is_read(tmp_path, rate):
    with pytest.raises(UserError, match="fs"):
        sampling_rate({"frontend_conf": {"fs": rate}})
    with pytest.raises(UserError, match="fs"):
        KaldiFbank(fs=rate)
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump({"fs": rate}))
    with pytest.raises(UserError, match="fs"):
        read_frontend(tmp_path / "conf.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_adapter": True, "adapter": "lora"}, "use_adapter: parameters of adapters .lora."),
        ({"token_type": "hugging_face"}, "token_type hugging_face: .* train with char, bpe, word"),
    ],
)
def test_what_only_espnet_reads_is_one_line(model, tmp_path, changes, message):
    config, path = tiny.save(tmp_path, model, **changes)
    with pytest.raises(UserError, match=message):
        load_model(config, path)


def test_words_are_joined_by_blanks(model, tmp_path):
    loaded = load_model(*tiny.save(tmp_path, model, token_type="word"))
    assert tiny.asr(loaded).session.token_type == "word" and tiny.asr(model).session.token_type == "char"


def test_an_unpacked_archive_has_its_own_files(tmp_path, monkeypatch):
    """ESPnet's names are the same in every recipe."""
    for folder in ("recipe", "recipe/unpacked"):
        experiment(tmp_path / folder / "exp/asr_stats", "feats_stats.npz")
    monkeypatch.chdir(tmp_path / "recipe")
    name = "exp/asr_stats/feats_stats.npz"
    assert locate(name, Path("unpacked/exp/asr_train/config.yaml")).samefile(f"unpacked/{name}")
    assert locate(name, Path("exp/asr_train/config.yaml")).samefile(name)
    assert locate(name, tmp_path / "elsewhere/config.yaml").samefile(name)


def test_an_archive_of_espnets_pack_is_told_what_to_do_with(tmp_path):
    (tmp_path / "model.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="model.zip: is a file.* unpack"):
        open_model(tmp_path / "model.zip")
    (tmp_path / "meta.yaml").write_text("files: {}")
    experiment(tmp_path / "exp/asr_train")
    with pytest.raises(UserError, match="archive of ESPnet's pack; give .*exp/asr_train"):
        open_model(tmp_path)
