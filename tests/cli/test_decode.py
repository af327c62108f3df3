"""The decoding command: its files, its settings, and what it says of broken input."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from espnet_ee.cli.main import main
from espnet_ee.data.features import extract_features
from espnet_ee.errors import UsageError, UserError
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.table import read_table
from tests import tiny

FILES = ["1best_recog/score", "1best_recog/text", "1best_recog/token", "1best_recog/token_int", "decode.yaml",
         "text", "utt2dur", "utt2exit", "utt2macs"]  # fmt: skip
ENTROPY = ("--policy", "entropy", "--policy_conf", "threshold=0.2")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's files, and in ``set`` a data directory of six utterances of mixed length."""
    folder = tmp_path_factory.mktemp("experiment")
    tiny.save(folder, tiny.model(seed=2))
    random = np.random.default_rng(1)
    wavs = {}
    for number, length in enumerate((16000, 9000, 30000, 500, 12000, 20000)):
        wavs[f"utt{number}"] = folder / f"{number}.wav"
        soundfile.write(wavs[f"utt{number}"], random.standard_normal(length) * 0.1, 16000)
    (folder / "set").mkdir()
    for name, values in (("wav.scp", wavs), ("text", dict.fromkeys(wavs, "A")), ("utt2spk", dict.fromkeys(wavs, "utt"))):
        (folder / "set" / name).write_text("".join(f"{utt} {value}\n" for utt, value in values.items()))
    return folder


def decode(experiment: Path, out: Path, *options: object, data: Path | None = None, model: Path | None = None) -> None:
    files = [
        "--model",
        model or experiment,
        "--model_file",
        next(experiment.glob("*.pth")),
        "--data",
        data or experiment / "set",
    ]
    main(["decode", *map(str, files), "--out", str(out), *map(str, options)])


def content(folder: Path) -> dict[str, str]:
    """All files but those that hold wall-clock times."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("decode.yaml", "timing.tsv")
    }


def test_files_of_an_online_run(experiment: Path, tmp_path: Path) -> None:
    decode(experiment, tmp_path, *ENTROPY)
    out = tmp_path / "decode_entropy/set"
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == sorted(FILES)
    for name in ("utt2exit", "utt2macs", "utt2dur"):
        assert list(read_scp(out / name)) == [f"utt{number}" for number in range(6)]
    facts = yaml.safe_load((out / "decode.yaml").read_text())
    assert facts["policy_conf"] == {"threshold": 0.2} and facts["utterances"] == 6
    assert facts["versions"]["torch"] and facts["parameters"] > 0 and facts["exit_layers"] == [1, 2, 4]
    assert facts["rtf"] == pytest.approx(facts["decode_seconds"] / facts["audio_seconds"], rel=0.05)


def test_evidence_of_every_exit(experiment: Path, tmp_path: Path) -> None:
    decode(experiment, tmp_path, "--every_exit")
    out = tmp_path / "decode_every_exit/set"
    table = read_table(out / "evidence.tsv")
    assert table.exit_layers == (1, 2, 4)
    assert list(table.utterances) == [f"utt{number}" for number in range(6)]
    final = {key: utterance.rows[-1].hypothesis for key, utterance in table.utterances.items()}
    assert final == read_scp(out / "1best_recog/text", allow_empty=True)
    assert (out / "timing.tsv").read_text().count("\n") == 1 + 6 * 3
    assert set(read_scp(out / "utt2exit").values()) == {"4"}


def test_stage_12_is_one_call(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "decode_first.yaml").write_text("policy: fixed\npolicy_conf: {exit_layer: 1}\n")
    words = ["--config", tmp_path / "decode_first.yaml", "--calibrate_on", "set", "--policies", "entropy", "patience",
             "--targets", "mean_layer=3", "--online", "entropy"]  # fmt: skip
    decode(experiment, tmp_path / "exp", *words)
    names = {path.name for path in (tmp_path / "exp").iterdir()}
    assert names == {"decode_every_exit", "decode_first", "decode_entropy_mean_layer3", "policies"}
    assert {path.stem for path in (tmp_path / "exp/policies").glob("*.yaml")} == {
        "decode_entropy_mean_layer3",
        "decode_patience_mean_layer3",
    }
    before = content(tmp_path / "exp")
    capsys.readouterr()
    decode(experiment, tmp_path / "exp", *words)
    assert capsys.readouterr().out.count("done before") == 3 and content(tmp_path / "exp") == before


def test_without_a_policy_the_last_exit_is_read(experiment: Path, tmp_path: Path) -> None:
    decode(experiment, tmp_path)
    assert set(read_scp(tmp_path / "decode_fixed/set/utt2exit").values()) == {"4"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--policy", "entropy"), UserError, "threshold"),
        (("--policy", "entropy", "--policy_conf", "threshold"), UsageError, "KEY=VALUE"),
        (("--policy", "entropy", "--policy_conf", "treshold=1"), UserError, "treshold"),
        (("--policy_conf", "threshold=1"), UsageError, "--policy"),
        (("--policy", "fixed", "--policy_conf", "exit_layer=3"), UserError, "layer 3"),
        (("--batch_size", "0"), UserError, "batch_size"),
        (("--config", "nowhere.yaml"), UserError, r"nowhere\.yaml"),
        (("--targets", "wer_loss=1"), UsageError, "--calibrate_on"),
        (("--calibrate_on", "dev"), UsageError, "--calibrate_on dev"),
        (("--device", "cuda:99"), UsageError, "cuda:99"),
        (("--nbest", "3"), UsageError, "--nbest"),
    ],
)
def test_wrong_settings_are_named_and_nothing_is_written(
    experiment: Path, tmp_path: Path, options: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decode(experiment, tmp_path, *options)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("written", "message"),
    [("policy: entropy\nbatchsize: 3", "batchsize"), ("policy_conf: 0.003", "policy_conf"), ("policy: [entropy]", "policy")],
)
def test_a_broken_configuration_is_named(experiment: Path, tmp_path: Path, written: str, message: str) -> None:
    (tmp_path / "decode.yaml").write_text(written)
    with pytest.raises(UserError, match=rf"decode\.yaml: .*{message}"):
        decode(experiment, tmp_path / "out", "--config", tmp_path / "decode.yaml")


def test_two_configurations_of_one_name_are_refused(experiment: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name / "decode.yaml" for name in "ab"]
    for layer, path in enumerate(paths, 1):
        path.parent.mkdir()
        path.write_text(f"policy: fixed\npolicy_conf: {{exit_layer: {layer}}}\n")
    with pytest.raises(UsageError, match=r"b/decode\.yaml"):
        decode(experiment, tmp_path / "out", "--config", *paths)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("utt0", r"wav\.scp:2: .*'utt0'"),
        ("utt0 nowhere.wav", r"nowhere\.wav"),
        ("utt0 {folder}/garbage.wav", r"garbage\.wav"),
        ("utt0 {folder}/8k.wav", "8000 Hz, the model takes 16000 Hz"),
        ("utt0 {folder}/empty.wav", r"empty\.wav"),
        ("utt0 {folder}/nan.wav", r"nan\.wav"),
        ("utt0 cat x.wav |", r"wav\.scp:2: commands are not run"),
    ],
)
def test_broken_audio_is_named(experiment: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "garbage.wav").write_bytes(b"RIFF....")
    soundfile.write(tmp_path / "8k.wav", np.zeros(800), 8000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(1600, np.nan), 16000, subtype="FLOAT")
    (tmp_path / "data").mkdir()
    good = (experiment / "set/wav.scp").read_text().splitlines(keepends=True)[1]
    (tmp_path / "data/wav.scp").write_text(good + line.format(folder=tmp_path) + "\n")
    out = tmp_path / "out/decode_fixed/data"
    if any(name in line for name in ("garbage", "empty", "nan")):  # one sound that nobody can hear: the other is decoded
        decode(experiment, tmp_path / "out", data=tmp_path / "data")
        assert list(read_scp(out / "utt2exit")) == [good.split()[0]]
        assert list(read_scp(out / "failed")) == ["utt0"] and re.search(message, read_scp(out / "failed")["utt0"])
        return
    with pytest.raises(UserError, match=message):
        decode(experiment, tmp_path / "out", data=tmp_path / "data")
    assert not out.exists()


@pytest.mark.parametrize("frontend", ["default", "kaldi_fbank"])
def test_stored_features_give_what_audio_gives(frontend: str, experiment: Path, tmp_path: Path) -> None:
    """A model on stored features differs from one on audio by its configuration alone (DESIGN 6)."""
    described = {"frontend": frontend, "frontend_conf": {"fs": "16k", "n_mels": 80}}
    (tmp_path / "frontend.yaml").write_text(yaml.safe_dump(described))
    extract_features(experiment / "set", tmp_path / "set", tmp_path / "frontend.yaml")
    configs = {
        "audio": {**tiny.config(), **described},
        "stored": {**tiny.config(), "frontend": None, "frontend_conf": {}, "input_size": 80},
    }
    for name in ("audio", "stored", "raw"):
        (tmp_path / name).mkdir()
    for name, config in configs.items():
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    # The rewritten configuration takes audio with the same parameters.
    files = ["--train_config", tmp_path / "stored/config.yaml", "--frontend", tmp_path / "set/frontend.yaml"]
    main(["raw-audio", *map(str, files), "--out", str(tmp_path / "raw/config.yaml")])
    made = []
    for name in ("audio", "stored", "raw"):
        decode(experiment, tmp_path / "out" / name, model=tmp_path / name, data=tmp_path / "set" if name == "stored" else None)
        out = tmp_path / "out" / name / "decode_fixed/set"
        made.append([(out / file).read_bytes() for file in ("1best_recog/text", "1best_recog/score", "utt2macs")])
    assert made[0] == made[1] == made[2]
    seconds = [read_scp(tmp_path / f"out/{name}/decode_fixed/set/utt2dur") for name in ("audio", "stored")]
    for key, value in seconds[0].items():
        assert float(seconds[1][key]) == pytest.approx(float(value), abs=0.02)


def test_chunks_are_another_decoding(experiment: Path, tmp_path: Path) -> None:
    conf = {key: value for key, value in tiny.CONFORMER.items() if key != "macaron_style"}
    settings = {
        "encoder": "early_exit_fast_conformer",
        "frontend": "kaldi_fbank",
        "frontend_conf": {},
        "encoder_conf": {**conf, "exit_layers": [1, 2, 4], "chunk_range": [2, 6], "left_frames": 4},
    }
    (tmp_path / "exp").mkdir()
    tiny.save(tmp_path / "exp", tiny.model(seed=2, **settings), **settings)
    contents = []
    for words in ([], ["--chunk_ms", 80], [], ["--chunk_ms", 160]):
        decode(tmp_path / "exp", tmp_path / "out", "--every_exit", *words, data=experiment / "set")
        contents.append(content(tmp_path / "out"))
        facts = yaml.safe_load((tmp_path / "out/decode_every_exit/set/decode.yaml").read_text())
        assert facts["chunk_ms"] == (words[1] if words else None)
    assert contents[0] == contents[2] and len({str(one) for one in contents}) == 3
    with pytest.raises(UserError, match="a chunk of 100 ms: give a multiple of 40 ms"):
        decode(tmp_path / "exp", tmp_path / "other", "--chunk_ms", 100, data=experiment / "set")
    with pytest.raises(UserError, match="was not trained for chunks"):
        decode(experiment, tmp_path / "other", "--chunk_ms", 320)
