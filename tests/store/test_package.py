"""A package holds all that a model needs, loads from a folder or the hub, and tells what it is."""

import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from espnet_ee import hub
from espnet_ee.api import EarlyExitASR
from espnet_ee.cli.main import main
from espnet_ee.errors import UsageError, UserError
from espnet_ee.model.heads import exit_heads_of, mac_table
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.score.points import COLUMNS
from espnet_ee.store import package
from espnet_ee.store.checkpoint import experiment_files, load_model
from espnet_ee.store.export_stock import exit_state, export_stock
from espnet_ee.store.model_card import Card
from espnet_ee.store.package import load_package, pack_model
from espnet_ee.store.tensors import read_tensors, write_safetensors
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


def test_a_package_is_the_model(trained, packed, no_network, monkeypatch, tmp_path):
    made = packed("package")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recogniser = EarlyExitASR.from_pretrained(made)
    assert recogniser.config.policy == EntropyPolicy(0.2)
    for key, value in trained[2].state_dict().items():
        assert torch.equal(recogniser.session.model.state_dict()[key], value)
    samples = np.random.default_rng(0).standard_normal(9000).astype(np.float32)
    assert EarlyExitASR.from_pretrained(made, "sure").recognise([samples])[0].exit_layer == 4
    assert EarlyExitASR.from_pretrained(made, FixedExitPolicy(1)).recognise([samples])[0].exit_layer == 1
    with pytest.raises(UserError, match="'slow'.* quick, sure"):
        EarlyExitASR.from_pretrained(made, "slow")


def test_the_same_model_packs_to_the_same_bytes_and_holds_no_paths(packed):
    first, second = ({file.name: file.read_bytes() for file in packed(name).iterdir()} for name in ("a", "b"))
    assert first == second
    assert not any(b"/home/someone" in content for content in first.values())
    assert yaml.safe_load(first["config.yaml"])["bpemodel"] == "bpe.model"
    assert not any(content.startswith((b"PK", b"\x80")) for name, content in first.items() if name != "feats_stats.npz")


ARPA = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1\t<s>\n-1\t</s>\n-0.5\tA\n-0.9\tB\n\n\\end\\\n"


@pytest.fixture
def with_lm(trained, tmp_path):
    """A package with a language model that two of its configurations name, by other ways."""
    folder, paths, _ = trained
    (tmp_path / "lms").mkdir()
    (tmp_path / "lms" / "some.arpa").write_text(ARPA)
    for name, lm in (("one", "lms/some.arpa"), ("two", str(tmp_path / "lms" / ".." / "lms" / "some.arpa"))):
        search = f"search: {{kind: beam, beam: 3, lm: {lm}, lm_weight: 0.3}}\n"
        (tmp_path / f"decode_{name}.yaml").write_text(f"policy: entropy\npolicy_conf: {{threshold: 0.2}}\n{search}")
    configs = [tmp_path / "decode_one.yaml", tmp_path / "decode_two.yaml", folder / "quick.yaml"]
    made = pack_model(*paths, tmp_path / "package", CARD, configs)
    (tmp_path / "lms" / "some.arpa").unlink()
    return made


def test_a_language_model_travels_with_the_model(with_lm, no_network, tmp_path):
    assert (with_lm / "lm.arpa").read_text() == ARPA and len(list(with_lm.glob("*.arpa"))) == 1
    assert all(
        yaml.safe_load((with_lm / f"decode_{name}.yaml").read_text())["search"]["lm"] == "lm.arpa" for name in ("one", "two")
    )
    loaded = load_package(with_lm)
    assert loaded.configs["two"].search.lm == str(with_lm / "lm.arpa") and loaded.configs["quick"].search.lm is None
    assert "Search of the text: beam 3, language model lm.arpa (weight 0.3); greedy." in (with_lm / "README.md").read_text()
    moved = with_lm.rename(tmp_path / "moved")
    assert load_package(moved).configs["two"].search.lm == str(moved / "lm.arpa")
    assert any(fnmatch("lm.arpa", pattern) for pattern in package.DOWNLOADED)


@pytest.mark.parametrize("name", ["/etc/passwd", "../lm.arpa", "sub/lm.arpa", ".lm.arpa", "none.arpa", ".", ""])
def test_a_package_names_no_language_model_elsewhere(with_lm, name):
    (with_lm.parent / "lm.arpa").write_text(ARPA)
    (with_lm / ".lm.arpa").write_text(ARPA)
    path = with_lm / "decode_one.yaml"
    path.write_text(path.read_text().replace("lm: lm.arpa", f"lm: '{name}'"))
    with pytest.raises(UserError, match=r"decode_one.yaml: search: lm .* is not a file beside it, refused"):
        load_package(with_lm)


def test_a_missing_language_model_is_said_before_anything_is_packed(trained, tmp_path):
    _folder, paths, _ = trained
    (tmp_path / "decode_a.yaml").write_text("search: {kind: beam, lm: gone.arpa}\n")
    with pytest.raises(UserError, match="no such language model as .*gone.arpa"):
        pack_model(*paths, tmp_path / "package", CARD, [tmp_path / "decode_a.yaml"])
    assert not (tmp_path / "package").exists()


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
        row |= {"wer_low": wer - 1, "wer_high": wer + 1}
        rows.append({**row, "depth": depth, "word_tokens": 10000, "word_substitutions": int(wer * 100)})
    lines = [",".join(COLUMNS), *(",".join(str(row[name]) for name in COLUMNS) for row in rows)]
    (tmp_path / "exits.csv").write_text("\n".join(lines) + "\n")
    made = pack_model(*paths, tmp_path / "package", CARD, [folder / "quick.yaml"], tmp_path / "exits.csv")
    text = (made / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "cc-by-4.0" and facts["language"] == "en"
    # For these the hub would show stock ESPnet's way of loading, which cannot load the model.
    assert facts["library_name"] != "espnet" and "espnet" not in facts["tags"]
    assert facts["model-index"][0]["results"][0]["metrics"][0]["value"] == 9.25
    # What stopping at exit 1 uses, counted the other way round: the whole model without what lies above.
    above = ("encoder.encoders.1.", "encoder.encoders.2.", "encoder.encoders.3.", "encoder.after_norm.", "ctc.",
             "exit_ctc.2", "encoder.exit_norms.2")  # fmt: skip
    count = sum(value.numel() for name, value in model.named_parameters() if not name.startswith(above))
    macs = mac_table(model).encoder_macs(1, 1250) + mac_table(model).head_macs(1, 311)
    assert f"|1|{count:,}|{macs / 1e7:.1f}|30.50 [29.50, 31.50]|" in body
    (row,) = [line for line in body.splitlines() if line.startswith("|`quick` (default)|")]
    assert all(word in row for word in ("entropy threshold=0.2", "11.00 [10.00, 12.00]", "2.50"))
    for word in ("data: noise", "`./run.sh`", "licence: cc-by-4.0", 'from_pretrained("someone/tiny").transcribe("a.wav")',
                 "espnet-ee transcribe a.wav --model someone/tiny", "pip install", "the policy `quick`"):  # fmt: skip
        assert word in body, word
    assert len(exit_state(model, 1)) < len(exit_state(model, 4))


def test_the_command(trained, tmp_path, capsys):
    folder, (config, model_file), _ = trained
    options = {"model": Path(config).parent, "model_file": model_file, "out": tmp_path / "package",
               "config": folder / "quick.yaml", "name": "someone/tiny", "licence": "other", "training_data": "noise"}  # fmt: skip
    words = ["pack", *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
    main(words)
    assert f"hf upload someone/tiny {tmp_path / 'package'}" in capsys.readouterr().out
    assert EarlyExitASR.from_pretrained(tmp_path / "package").config.policy == EntropyPolicy(0.2)
    with pytest.raises(UsageError, match="--name"):
        main([*words, "--name", "a b"])


def test_a_hub_name_is_downloaded(packed, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "_download", lambda name, _: asked.append(name) or packed("cache"))
    EarlyExitASR.from_pretrained("someone/tiny")
    assert asked == ["someone/tiny"]


def test_what_was_downloaded_is_a_package_or_nothing(packed, monkeypatch):
    """An experiment's files are trusted, a stranger's are not: a download without a description must not pass for one."""
    folder = packed("cache")
    (folder / "package.yaml").unlink()
    monkeypatch.setattr(hub, "_download", lambda name, _: folder)
    with pytest.raises(UserError, match=r"package\.yaml: no such file"):
        EarlyExitASR.from_pretrained("someone/tiny")


def test_the_hub_is_asked_for_all_that_loading_reads(packed, monkeypatch, tmp_path):
    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        (tmp_path / "hub").mkdir()
        for file in packed("package").iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                (tmp_path / "hub" / file.name).symlink_to(file)  # as the hub's cache does
        return str(tmp_path / "hub")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    recogniser = EarlyExitASR.from_pretrained("someone/tiny", "sure")
    assert recogniser.config.policy == FixedExitPolicy(4)
    assert not (tmp_path / "hub/README.md").exists()


@pytest.mark.parametrize("source", ["./someone/tiny", "exp/model", "/no/such", "tiny", "../x", "a/b/c"])
def test_a_path_that_is_not_there_never_touches_the_network(no_network, monkeypatch, tmp_path, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp").mkdir()
    monkeypatch.setattr(hub, "_download", lambda name, _: pytest.fail(f"{name} was taken for a hub name"))
    with pytest.raises(UserError, match=f"{source}: no such folder"):
        EarlyExitASR.from_pretrained(source)


def test_an_experiments_folder_is_a_model_too(trained, monkeypatch, tmp_path):
    """From any folder, though its configuration names files as seen from the recipe's."""
    folder, _, model = trained
    recipe = tmp_path / "recipe"
    (recipe / "exp/asr/policies").mkdir(parents=True)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for section, key, name in (("normalize_conf", "stats_file", "feats_stats.npz"), (None, "bpemodel", "bpe.model")):
        (recipe / "exp" / name).write_bytes((folder / name).read_bytes())
        (config if section is None else config[section])[key] = f"exp/{name}"
    (recipe / "exp/asr/config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), recipe / "exp/asr/valid.loss.ave.pth")
    for name, threshold in (("entropy_wer_loss1", 0.1), ("learned_wer_loss1", 0.2)):
        text = f"policy: entropy\npolicy_conf: {{threshold: {threshold}}}\n"
        (recipe / f"exp/asr/policies/decode_{name}.yaml").write_text(text)
    assert [path.name.split("_")[1] for path in package.calibrated_configs(recipe / "exp/asr")] == ["learned", "entropy"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened = package.open_model(recipe / "exp/asr")
    policies = {name: config.policy for name, config in opened.configs.items()}
    assert policies == {"learned_wer_loss1": EntropyPolicy(0.2), "entropy_wer_loss1": EntropyPolicy(0.1)}
    assert opened.sample_rate == 16000
    assert opened.default == "learned_wer_loss1" and opened.configs[opened.default].policy == EntropyPolicy(
        0.2
    )  # as its package's and export's
    assert torch.equal(opened.model.normalize.mean, model.normalize.mean)
    packed = pack_model(*experiment_files(recipe / "exp/asr"), tmp_path / "package", CARD)
    assert (packed / "bpe.model").read_bytes() == b"pieces"


def test_files_of_a_package_make_a_model_and_an_export(trained, packed, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    files = experiment_files(packed("package"))
    loaded = load_model(*files).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in trained[2].state_dict().items())
    assert (export_stock(*files, 2, tmp_path / "exit2") / "feats_stats.npz").exists()


@pytest.mark.parametrize("heads", ["shared", "separate"])
def test_heads_survive_packing(tmp_path, heads):
    settings = {"model_conf": {"ctc_weight": 1.0, "exit_heads": heads}}
    model = tiny.model(seed=5, **settings)
    loaded = load_package(pack_model(*tiny.save(tmp_path, model, **settings), tmp_path / "package", CARD)).model
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    heads_of = {id(head) for head in exit_heads_of(loaded).by_layer.values()}
    assert len(heads_of) == (1 if heads == "shared" else 3)


def test_two_names_of_one_parameter_are_written(tmp_path):
    weight = torch.randn(3, 4)
    write_safetensors(tmp_path / "a.safetensors", {"a": weight, "b": weight, "c": weight.T, "d": weight[1]})
    read = read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(read["b"], weight) and torch.equal(read["c"], weight.T) and torch.equal(read["d"], weight[1])


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"someone/tiny.*pip install -e '\.\[hub\]'"):
        EarlyExitASR.from_pretrained("someone/tiny")


def test_a_configuration_listed_twice_is_one(trained, tmp_path):
    folder, paths, _ = trained
    (tmp_path / "other").mkdir()
    (tmp_path / "other/decode_quick.yaml").write_bytes((folder / "quick.yaml").read_bytes())
    twice = [folder / "quick.yaml", f"{folder}/../{folder.name}/quick.yaml", tmp_path / "other/decode_quick.yaml"]
    assert list(load_package(pack_model(*paths, tmp_path / "package", CARD, twice)).configs) == ["quick"]
    (tmp_path / "other/decode_quick.yaml").write_text("policy: fixed\n")
    with pytest.raises(UsageError, match="quick"):
        pack_model(*paths, tmp_path / "two", CARD, twice)
    assert not (tmp_path / "two").exists()


def test_only_an_earlier_package_is_replaced(trained, packed):
    folder, paths, _ = trained
    packed("package")
    packed("package")
    with pytest.raises(UserError, match=str(folder)):
        pack_model(*paths, folder, CARD)
    assert (folder / "quick.yaml").exists()


@pytest.mark.parametrize("name", ["README.md", "LICENSE", ".git/config"])
def test_a_card_that_was_corrected_is_not_packed_over(packed, name):
    path = packed("package") / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=f"{name}: was changed or added after .*, and would be lost"):
        packed("package")
    assert path.read_text() == "mine"
    load_package(packed("other") if name == ".git/config" else path.parent)  # to be loaded it may be changed
    path.unlink()
    packed("package")


def test_a_package_of_which_the_description_is_gone_is_no_experiment(packed):
    """It would be recognised at the final exit, whatever its default says."""
    folder = packed("package")
    (folder / "package.yaml").unlink()
    with pytest.raises(UserError, match="a package without its package.yaml"):
        package.open_model(folder)


def test_the_first_calibrated_policy_is_one_that_ran_online_for_the_first_target(tmp_path):
    names = [
        "entropy_wer_loss1",
        "learned_wer_loss1",
        "learned_wer_loss10",
        "learned_mean_layer6",
        "entropy_mean_layer6",
        "mine",
    ]
    (tmp_path / "policies").mkdir()
    for name in names:
        (tmp_path / f"policies/decode_{name}.yaml").write_text("policy: fixed\n")
    point = dict.fromkeys(COLUMNS, 0)
    rows = [",".join(COLUMNS), *(",".join(str({**point, "name": name}[key]) for key in COLUMNS) for name in names[:-1])]

    def order() -> list[str]:
        return [path.stem.removeprefix("decode_") for path in package.calibrated_configs(tmp_path)]

    assert order()[0] == "learned_mean_layer6"  # nothing is known but the names
    (tmp_path / "policies/promises.csv").write_text("\n".join(rows) + "\n")
    learned, entropy = [name for name in names if "learned" in name], [name for name in names if "entropy" in name]
    assert order() == [*learned, *entropy, "mine"]
    for name in entropy:
        (tmp_path / f"decode_{name}/test").mkdir(parents=True)
        (tmp_path / f"decode_{name}/test/decode.yaml").write_text("{}\n")
    assert order() == [*entropy, *learned, "mine"]


@pytest.mark.parametrize(
    ("changes", "frames"),
    [({"frontend": "kaldi_fbank"}, 1000), ({"frontend": "default"}, 1250),
     ({"frontend": "default", "frontend_conf": {"hop_length": 160}}, 1000)],
    ids=str,
)  # fmt: skip
def test_the_card_of_a_model_on_stored_features(tmp_path, changes, frames):
    settings = {"input_size": 80, **changes}
    model = tiny.model(**settings)
    made = pack_model(*tiny.save(tmp_path, model, **settings), tmp_path / "package", CARD)
    table, body = mac_table(model), (made / "README.md").read_text()
    (row,) = [line for line in body.splitlines() if line.startswith("|4|")]
    macs = table.encoder_macs(4, frames) + table.head_macs(4, table.encoder_frames(frames))
    assert row.split("|")[3] == f"{macs / 1e7:.1f}"
    assert 'transcribe("features.npy")' in body and "a.wav" not in body and "espnet-ee transcribe" not in body
