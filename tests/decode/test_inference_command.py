"""The decoding command: its files, its settings, and what it says of broken input."""

import sys

import numpy as np
import pytest
import soundfile
import yaml

from espnet_ee.bin import asr_inference
from espnet_ee.data.features import extract_features
from espnet_ee.errors import UsageError, UserError
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.posterior import PosteriorPolicy
from espnet_ee.policy.table import read_table
from espnet_ee.store.train_config import write_raw_audio_config
from tests import tiny

FILES = ["1best_recog/score", "1best_recog/text", "1best_recog/token", "1best_recog/token_int", "decode.yaml",
         "utt2dur", "utt2exit", "utt2macs"]  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A model's files and a data directory of six utterances of mixed length."""
    folder = tmp_path_factory.mktemp("experiment")
    config, checkpoint = tiny.save(folder, tiny.model(seed=2))
    data = folder / "data"
    data.mkdir()
    random = np.random.default_rng(1)
    lines = []
    for number, length in enumerate((16000, 9000, 30000, 500, 12000, 20000)):
        path = folder / f"{number}.wav"
        soundfile.write(path, random.standard_normal(length) * 0.1, 16000)
        lines.append(f"utt{number} {path}\n")
    (data / "wav.scp").write_text("".join(lines))
    return folder, config, checkpoint, data


def decode(monkeypatch, experiment, out, *options, data=None) -> None:
    _folder, config, checkpoint, own = experiment
    arguments = ["asr_inference", "--asr_train_config", config, "--asr_model_file", checkpoint,
                 "--data_dir", str(data or own), "--output_dir", str(out), *map(str, options)]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    asr_inference.main()


def content(folder) -> dict[str, str]:
    """All files but those that hold wall-clock times."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("decode.yaml", "timing.tsv")
    }


def test_files_of_an_online_run(monkeypatch, experiment, tmp_path):
    out = tmp_path / "decode"
    decode(monkeypatch, experiment, out, "--policy", "entropy", "--policy_conf", "threshold=0.2")
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == sorted(FILES)
    for name in ("utt2exit", "utt2macs", "utt2dur"):
        assert list(read_scp(out / name)) == [f"utt{number}" for number in range(6)]
    facts = yaml.safe_load((out / "decode.yaml").read_text())
    assert facts["policy_conf"] == {"threshold": 0.2}
    assert facts["utterances"] == 6
    assert facts["rtf"] == pytest.approx(facts["decode_seconds"] / facts["audio_seconds"], rel=0.05)


def test_evidence_of_all_exits(monkeypatch, experiment, tmp_path):
    out = tmp_path / "decode"
    decode(monkeypatch, experiment, out, "--all_exits", "true")
    table = read_table(out / "evidence.tsv")
    assert table.exit_layers == (1, 2, 4)
    assert list(table.utterances) == [f"utt{number}" for number in range(6)]
    final = {key: utterance.rows[-1].hypothesis for key, utterance in table.utterances.items()}
    assert final == read_scp(out / "1best_recog/text", allow_empty=True)
    assert (out / "timing.tsv").read_text().count("\n") == 1 + 6 * 3
    assert set(read_scp(out / "utt2exit").values()) == {"4"}


def test_results_depend_on_neither_batch_nor_order(monkeypatch, experiment, tmp_path):
    lines = (experiment[3] / "wav.scp").read_text().splitlines(keepends=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/wav.scp").write_text("".join(reversed(lines)))
    options = ("--policy", "entropy", "--policy_conf", "threshold=0.2")
    decode(monkeypatch, experiment, tmp_path / "a", *options)
    decode(monkeypatch, experiment, tmp_path / "b", *options, "--batch_size", 4, data=tmp_path / "data")
    first, second = content(tmp_path / "a"), content(tmp_path / "b")
    scores = [read_scp(tmp_path / name / "1best_recog/score") for name in "ab"]
    for contents in (first, second):
        del contents["1best_recog/score"]  # a sum of floats; the last digits may differ
    assert first == second
    for key in scores[0]:
        assert float(scores[0][key]) == pytest.approx(float(scores[1][key]), abs=1e-3)


def test_settings_come_from_the_file_then_the_command_line(monkeypatch, experiment, tmp_path):
    (tmp_path / "decode.yaml").write_text("policy: fixed\npolicy_conf: {exit_layer: 2}\nbatch_size: 3\n")
    decode(monkeypatch, experiment, tmp_path / "a", "--config", tmp_path / "decode.yaml")
    decode(monkeypatch, experiment, tmp_path / "b", "--config", tmp_path / "decode.yaml", "--policy", "fixed")
    assert set(read_scp(tmp_path / "a/utt2exit").values()) == {"2"}
    assert set(read_scp(tmp_path / "b/utt2exit").values()) == {"4"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--policy", "entropi"), UserError, "entropi"),
        (("--policy", "entropy"), UserError, "threshold"),
        (("--policy", "entropy", "--policy_conf", "threshold"), UsageError, "KEY=VALUE"),
        (("--policy", "entropy", "--policy_conf", "treshold=1"), UserError, "treshold"),
        (("--policy", "fixed", "--policy_conf", "exit_layer=3"), UserError, "no exit after layer 3"),
        (("--batch_size", "0"), UsageError, "batch_size"),
        (("--config", "nowhere.yaml"), UserError, "nowhere.yaml: no such file"),
    ],
)
def test_wrong_settings_are_named_and_nothing_is_written(monkeypatch, experiment, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        decode(monkeypatch, experiment, tmp_path / "decode", *options)
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_of_the_configuration_is_named(monkeypatch, experiment, tmp_path):
    (tmp_path / "decode.yaml").write_text("policy: entropy\nbatchsize: 3\n")
    with pytest.raises(UserError, match="decode.yaml: unknown key 'batchsize'"):
        decode(monkeypatch, experiment, tmp_path / "out", "--config", tmp_path / "decode.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("utt0", "wav.scp:2: nothing follows the key 'utt0'"),
        ("utt0 nowhere.wav", "nowhere.wav"),
        ("utt0 {folder}/garbage.wav", "garbage.wav"),
        ("utt0 {folder}/8k.wav", "8000 Hz, the model takes 16000 Hz"),
        ("utt0 {folder}/empty.wav", "empty.wav"),
        ("utt0 {folder}/nan.wav", "nan.wav"),
    ],
)
def test_broken_audio_is_named_and_nothing_is_written(monkeypatch, experiment, tmp_path, line, message):
    (tmp_path / "garbage.wav").write_bytes(b"RIFF....")
    soundfile.write(tmp_path / "8k.wav", np.zeros(800), 8000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(1600, np.nan), 16000, subtype="FLOAT")
    (tmp_path / "data").mkdir()
    good = (experiment[3] / "wav.scp").read_text().splitlines(keepends=True)[1]
    (tmp_path / "data/wav.scp").write_text(good + line.format(folder=tmp_path) + "\n")
    with pytest.raises(UserError, match=message):
        decode(monkeypatch, experiment, tmp_path / "out", data=tmp_path / "data")
    assert not (tmp_path / "out").exists()


def test_no_data_directory(monkeypatch, experiment, tmp_path):
    with pytest.raises(UserError, match="neither wav.scp nor feats.scp"):
        decode(monkeypatch, experiment, tmp_path / "out", data=tmp_path / "nowhere")


def test_extracted_features_give_the_text_of_the_audio(monkeypatch, experiment, tmp_path):
    """A model trained on stored features differs from one on audio by its configuration alone (DESIGN 6)."""
    folder, _, checkpoint, data = experiment
    for name, value in (("text", "A"), ("utt2spk", "spk")):
        (data / name).write_text("".join(f"utt{number} {value}\n" for number in range(6)))
    (data / "spk2utt").write_text("spk " + " ".join(f"utt{number}" for number in range(6)) + "\n")
    extract_features(data, tmp_path / "feats", None)
    stored = {**tiny.config(), "frontend": None, "frontend_conf": {}, "input_size": 80}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    decode(monkeypatch, experiment, tmp_path / "a", "--all_exits", "true")
    decode(monkeypatch, (folder, str(tmp_path / "config.yaml"), checkpoint, tmp_path / "feats"), tmp_path / "b",
           "--all_exits", "true")  # fmt: skip
    assert read_scp(tmp_path / "a/1best_recog/text", allow_empty=True) == read_scp(
        tmp_path / "b/1best_recog/text", allow_empty=True
    )
    seconds = read_scp(tmp_path / "a/utt2dur"), read_scp(tmp_path / "b/utt2dur")
    for key, value in seconds[0].items():
        assert float(seconds[1][key]) == pytest.approx(float(value), abs=0.02)
    # The rewritten configuration takes audio with the same parameters, and writes the same text.
    write_raw_audio_config(tmp_path / "config.yaml", tmp_path / "feats/frontend.yaml", tmp_path / "raw.yaml")
    decode(monkeypatch, (folder, str(tmp_path / "raw.yaml"), checkpoint, data), tmp_path / "c", "--all_exits", "true")
    assert (tmp_path / "c/1best_recog/text").read_bytes() == (tmp_path / "b/1best_recog/text").read_bytes()
    with pytest.raises(UserError, match="takes audio already"):
        write_raw_audio_config(tmp_path / "raw.yaml", tmp_path / "feats/frontend.yaml", tmp_path / "x.yaml")


@pytest.mark.parametrize(("written", "message"), [("", "makes None features"), (" log", "must be 'key: value' lines")])
def test_a_frontend_that_tells_nothing_is_named(written, message, tmp_path):
    (tmp_path / "config.yaml").write_text("input_size: 80\n")
    (tmp_path / "frontend.yaml").write_text(f"frontend_conf:{written}\n")
    with pytest.raises(UserError, match=rf"frontend\.yaml: .*{message}"):
        write_raw_audio_config(tmp_path / "config.yaml", tmp_path / "frontend.yaml", tmp_path / "raw.yaml")


def test_only_an_earlier_decoding_is_replaced(monkeypatch, experiment, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "wav.scp").write_text((experiment[3] / "wav.scp").read_text())
    with pytest.raises(UserError, match="exists and was not made by this command"):
        decode(monkeypatch, experiment, data, data=data)
    assert (data / "wav.scp").exists()
    decode(monkeypatch, experiment, tmp_path / "out", data=data)
    decode(monkeypatch, experiment, tmp_path / "out", "--policy_conf", "exit_layer=1", data=data)
    assert set(read_scp(tmp_path / "out/utt2exit").values()) == {"1"}


def test_one_setting_on_the_command_line_leaves_the_files_others(monkeypatch, experiment, tmp_path):
    config = tmp_path / "decode.yaml"
    config.write_text("policy: posterior\npolicy_conf: {threshold: 0.5, nbest: 4}\n")
    monkeypatch.setattr(sys, "argv", ["asr_inference", "--asr_train_config", "c", "--asr_model_file", "m", "--data_dir", "d",
                                      "--output_dir", "o", "--config", str(config), "--policy_conf", "threshold=0.3"])  # fmt: skip
    assert asr_inference.read_settings(asr_inference.parse_arguments()).policy == PosteriorPolicy(0.3, nbest=4)


@pytest.mark.parametrize(
    ("content", "options", "error", "message"),
    [
        ("policy_conf: 0.003", (), UserError, "decode.yaml: policy_conf"),
        ("policy: [entropy]", (), UserError, "is unknown"),
        ("policy_conf:", ("--all_exits", "true", "--policy", "entropy"), UsageError, "give no --policy"),
        ("policy_conf:", ("--device", "cuda:99"), UsageError, "device cuda:99"),
    ],
)
def test_wrong_settings_are_one_line(monkeypatch, experiment, tmp_path, content, options, error, message):
    (tmp_path / "decode.yaml").write_text(content)
    with pytest.raises(error, match=message):
        decode(monkeypatch, experiment, tmp_path / "out", "--config", tmp_path / "decode.yaml", *options)
    assert not (tmp_path / "out").exists()


def test_no_utterance_is_said(monkeypatch, experiment, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/wav.scp").write_text("")
    with pytest.raises(UserError, match="no utterance"):
        decode(monkeypatch, experiment, tmp_path / "out", "--all_exits", "true", data=tmp_path / "data")
