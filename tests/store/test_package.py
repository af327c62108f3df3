"""A package holds all that a model needs, loads from a folder, an archive or the hub, and tells what it is."""

import sys

import numpy as np
import pytest
import torch
import yaml

from espnet_ee.bin import pack
from espnet_ee.decode.recognizer import EarlyExitRecognizer
from espnet_ee.errors import UsageError, UserError
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.score.points import COLUMNS
from espnet_ee.store import package
from espnet_ee.store.export_stock import exit_state
from espnet_ee.store.model_card import Card
from espnet_ee.store.package import pack_model
from tests import tiny

CARD = Card("someone/tiny", "cc-by-4.0", "noise", "en", "./run.sh")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained model's folder: with statistics, a BPE model and two policies."""
    folder = tmp_path_factory.mktemp("trained")
    np.savez(folder / "feats_stats.npz", count=9, sum=np.arange(80.0), sum_square=np.arange(80.0) ** 2 + 9)
    (folder / "bpe.model").write_bytes(b"pieces")
    settings = {
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": str(folder / "feats_stats.npz")},
        "token_type": "bpe",
        "bpemodel": str(folder / "bpe.model"),
        "output_dir": "/home/someone/exp",
    }
    model = tiny.model(seed=2, **settings)
    paths = tiny.save(folder, model, **settings)
    (folder / "quick.yaml").write_text("policy: entropy\npolicy_conf: {threshold: 0.2}\nbatch_size: 1\n")
    (folder / "sure.yaml").write_text("policy: fixed\npolicy_conf: {exit_layer: 4}\n")
    return folder, paths, model


@pytest.fixture
def packed(trained, tmp_path):
    """Packs to a name; what the package was made from may be gone when it is opened."""
    folder, paths, _ = trained

    def make(name: str):
        return pack_model(*paths, tmp_path / name, CARD, [folder / "quick.yaml", folder / "sure.yaml"])

    return make


@pytest.fixture
def no_network(monkeypatch):
    """Any try to reach the network is an error."""

    def refuse(*arguments, **options):
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.mark.parametrize("name", ["package", "package.zip"])
def test_a_package_is_the_model(trained, packed, no_network, monkeypatch, tmp_path, name):
    made = packed(name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recognizer = EarlyExitRecognizer.from_pretrained(made)
    assert recognizer.policy == EntropyPolicy(0.2)
    for key, value in trained[2].state_dict().items():
        assert torch.equal(recognizer.model.state_dict()[key], value)
    samples = np.random.default_rng(0).standard_normal(9000).astype(np.float32)
    assert EarlyExitRecognizer.from_pretrained(made, "sure").recognize([samples])[0].exit_layer == 4
    assert EarlyExitRecognizer.from_pretrained(made, FixedExitPolicy(1)).recognize([samples])[0].exit_layer == 1
    with pytest.raises(UserError, match="policy 'slow' is not in the package; it has quick, sure"):
        EarlyExitRecognizer.from_pretrained(made, "slow")


def test_the_same_model_packs_to_the_same_bytes_and_holds_no_paths(packed):
    assert packed("a.zip").read_bytes() == packed("b.zip").read_bytes()
    config = (packed("package") / "config.yaml").read_text()
    assert "/home/someone" not in config
    assert yaml.safe_load(config)["bpemodel"] == "bpe.model"


def test_nothing_is_written_when_packing_fails(trained, tmp_path):
    _folder, paths, _ = trained
    (tmp_path / "bad.yaml").write_text("policy: entropi\npolicy_conf: {}\n")
    with pytest.raises(UserError, match="entropi"):
        pack_model(*paths, tmp_path / "package", CARD, [tmp_path / "bad.yaml"])
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_the_card_tells_exits_and_policies(trained, tmp_path):
    folder, paths, model = trained
    rows = []
    for kind, name, wer, depth in (("fixed", "exit 1", 30.5, 1), ("fixed", "exit 4", 9.25, 4), ("online", "quick", 11, 2.5)):
        row = {**dict.fromkeys(COLUMNS, 0), "set": "test", "kind": kind, "name": name, "threshold": "", "wer": wer}
        rows.append({**row, "depth": depth, "word_tokens": 10000, "word_substitutions": int(wer * 100)})
    lines = [",".join(COLUMNS), *(",".join(str(row[name]) for name in COLUMNS) for row in rows)]
    (tmp_path / "exits.csv").write_text("\n".join(lines) + "\n")
    made = pack_model(*paths, tmp_path / "package", CARD, [folder / "quick.yaml"], tmp_path / "exits.csv")
    text = (made / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "cc-by-4.0" and facts["language"] == "en" and facts["library_name"] == "espnet"
    assert facts["model-index"][0]["results"][0]["metrics"][0]["value"] == 9.25
    # What stopping at exit 1 uses, counted the other way round: the whole model without what lies above.
    above = ("encoder.encoders.1.", "encoder.encoders.2.", "encoder.encoders.3.", "encoder.after_norm.", "ctc.",
             "exit_ctc.2", "encoder.exit_norms.2")  # fmt: skip
    count = sum(value.numel() for name, value in model.named_parameters() if not name.startswith(above))
    macs = model.encoder.shape().segment_macs(1250, [1])[0] + model.encoder.shape().head_macs(311, len(tiny.TOKENS))
    assert f"|1|{count:,}|{macs / 1e7:.1f}|30.50|" in body
    assert "`quick`: entropy threshold=0.2; test: WER 11.00 %, mean exit 2.50" in body
    assert all(word in body for word in ("data: noise", "`./run.sh`", "licence: cc-by-4.0", 'from_pretrained("someone/tiny")'))
    assert len(exit_state(model, 1)) < len(exit_state(model, 4))


def test_the_command(trained, tmp_path, monkeypatch, capsys):
    folder, (config, model_file), _ = trained
    options = {"asr_train_config": config, "asr_model_file": model_file, "outpath": tmp_path / "package",
               "policies": folder / "quick.yaml", "name": "someone/tiny", "licence": "other", "training_data": "noise"}  # fmt: skip
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    monkeypatch.setattr(sys, "argv", ["pack", *words])
    pack.main()
    assert f"hf upload someone/tiny {tmp_path / 'package'}" in capsys.readouterr().out
    assert EarlyExitRecognizer.from_pretrained(tmp_path / "package").policy == EntropyPolicy(0.2)
    for option, wrong in (("--name", "a b"), ("--outpath", "x.tar.gz")):
        monkeypatch.setattr(sys, "argv", ["pack", *words, option, wrong])
        with pytest.raises(UsageError, match=option):
            pack.main()


def test_a_hub_name_is_downloaded(packed, monkeypatch):
    asked = []
    monkeypatch.setattr(package, "_download", lambda name: asked.append(name) or packed("cache"))
    EarlyExitRecognizer.from_pretrained("someone/tiny")
    assert asked == ["someone/tiny"]


@pytest.mark.parametrize("source", ["./someone/tiny", "exp/model", "gone.zip", "a/b.zip", "/no/such", "tiny", "../x", "a/b/c"])
def test_a_path_that_is_not_there_never_touches_the_network(no_network, monkeypatch, tmp_path, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp").mkdir()
    monkeypatch.setattr(package, "_download", lambda name: pytest.fail(f"{name} was taken for a hub name"))
    with pytest.raises(UserError, match="no such folder or archive"):
        EarlyExitRecognizer.from_pretrained(source)


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="install huggingface_hub .extra: hub."):
        EarlyExitRecognizer.from_pretrained("someone/tiny")


def test_two_policies_of_one_name_are_refused(trained, tmp_path):
    _, paths, _ = trained
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "early.yaml", tmp_path / "other/early.yaml"):
        path.write_text("policy: fixed\n")
    with pytest.raises(UserError, match="two files have one name"):
        pack_model(*paths, tmp_path / "two", CARD, [tmp_path / "early.yaml", tmp_path / "other/early.yaml"])


def test_only_an_earlier_package_is_replaced(trained, packed):
    folder, paths, _ = trained
    packed("package")
    packed("package")
    with pytest.raises(UserError, match="is to be replaced but holds"):
        pack_model(*paths, folder, CARD)
    assert (folder / "quick.yaml").exists()
