"""A package of a fine-tuned pre-trained model needs neither folder nor hub; one that asks for them is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from espnet_ee.errors import UserError
from espnet_ee.store.checkpoint import load_model
from espnet_ee.store.export_stock import stock_lacks
from espnet_ee.store.model_card import Card
from espnet_ee.store.package import load_package, pack_model
from tests import hf, tiny

CARD = Card("someone/tiny_ssl", "cc-by-4.0", "noise")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A package whose pre-trained folder is gone, and its model."""
    folder = tmp_path_factory.mktemp("trained")
    pretrained = hf.save(tmp_path_factory.mktemp("pretrained"), "wavlm", True)
    made = hf.model(pretrained, mask_time_prob=0.1, unfreeze_step=5)
    settings = hf.settings(pretrained, mask_time_prob=0.1, unfreeze_step=5)
    paths = tiny.save(folder, made, **settings)
    package = pack_model(*paths, folder / "package", CARD)
    shutil.rmtree(pretrained)
    return package, made


@pytest.fixture
def package(packed: tuple[Path, torch.nn.Module], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(packed[0], tmp_path / "package"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def change(package: Path, **conf: Any) -> None:
    path = package / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["encoder_conf"] |= conf
    path.write_text(yaml.safe_dump(config))


def test_a_package_is_the_model_without_what_it_began_with(packed: tuple[Path, torch.nn.Module]) -> None:
    folder, made = packed
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert "pretrained" not in config["encoder_conf"] and config["encoder_conf"]["architecture"]["model_type"] == "wavlm"
    loaded = load_package(folder)
    assert loaded.sample_rate == 16000
    for name, value in made.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    xs, ilens = hf.audio()
    with torch.no_grad():
        assert torch.equal(loaded.model.encode(xs, ilens)[0][0], made.encode(xs, ilens)[0][0])
    card = (folder / "README.md").read_text()
    assert "transcribe a.wav" in card and "[espnet,hub,ssl]" in card and "as a plain ESPnet model" not in card
    macs = loaded.model.encoder.macs().encoder_macs(2, 160000) / 10e6
    assert f"|{macs:.1f}" in card or f"|{macs + 0.1:.1f}" in card  # of ten seconds of samples, and the head
    assert stock_lacks(config) == "encoder early_exit_hf"


@pytest.mark.parametrize("source", ["facebook/wav2vec2-base", "/etc", "../elsewhere", ["a"]])
def test_a_package_that_names_a_model_elsewhere_is_refused(package: Path, source: Any) -> None:
    change(package, pretrained=source)
    with pytest.raises(UserError, match="config.yaml: encoder_conf: pretrained .* refused"):
        load_package(package)


@pytest.mark.parametrize("source", ["facebook/wav2vec2-base", "/etc", "../elsewhere"])
def test_a_config_beside_its_checkpoint_asks_nobody_for_a_model(
    package: Path, packed: tuple[Path, torch.nn.Module], monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """As a training leaves them: config.yaml tells both what the model is and where its training began."""
    (package / "package.yaml").unlink()
    change(package, pretrained=source)
    torch.save(packed[1].state_dict(), package / "model.pth")
    monkeypatch.setattr("espnet_ee.encoder.hf_models.read_pretrained", lambda *_: pytest.fail("looked for"))
    loaded = load_model(package / "config.yaml", package / "model.pth").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in packed[1].state_dict().items())


def test_a_package_without_an_architecture_is_refused(package: Path) -> None:
    change(package, architecture={})
    with pytest.raises(UserError, match="needs pretrained|architecture"):
        load_package(package)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 5}, "has 4 blocks, config.yaml asks for 5"),
        ({"hidden_size": 4096}, "has shape"),
        ({"num_buckets": 60000}, "has shape"),
        ({"model_type": "wav2vec2"}, "is no setting of a wav2vec2 model"),
        ({"hidden_act": "quick_exec"}, "hidden_act 'quick_exec' cannot be"),
        ({"conv_dim": [60000] * 7}, "has shape"),
        ({"num_hidden_layers": "four"}, "four"),
    ],
    ids=str,
)
def test_an_architecture_that_is_not_the_parameters_is_refused(package: Path, changes: dict[str, Any], message: str) -> None:
    architecture = yaml.safe_load((package / "config.yaml").read_text())["encoder_conf"]["architecture"]
    change(package, architecture={**architecture, **changes})
    with pytest.raises(UserError, match=message):
        load_package(package)


@pytest.mark.parametrize("value", [5, "x", [1]])
def test_an_architecture_that_is_no_table_is_refused(package: Path, value: Any) -> None:
    change(package, architecture=value)
    with pytest.raises(UserError, match="architecture"):
        load_package(package)
