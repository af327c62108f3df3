"""Transcribing audio files: any format, several at once, a bad one among good ones."""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ee.api import EarlyExitASR
from espnet_ee.cli.main import main
from espnet_ee.decode.recognition import Recognition
from espnet_ee.decode.session import UtteranceError
from espnet_ee.errors import UsageError, UserError
from espnet_ee.kaldi import read_scp
from tests.cli.test_decode import decode, experiment  # noqa: F401

Captured = pytest.CaptureFixture[str]


def transcribe(folder: Path, *words: object) -> None:
    main(["transcribe", "--model", str(folder), *map(str, words)])


@pytest.fixture
def recordings(experiment: Path) -> list[Path]:  # noqa: F811
    return sorted(experiment.glob("*.wav"))


def test_texts_and_exits_are_those_of_decode(
    experiment: Path,  # noqa: F811
    recordings: list[Path],
    tmp_path: Path,
    capsys: Captured,
) -> None:
    (tmp_path / "decode_x.yaml").write_text("policy: entropy\npolicy_conf: {threshold: 0.2}\n")
    decode(experiment, tmp_path / "out", "--config", tmp_path / "decode_x.yaml")
    capsys.readouterr()
    transcribe(experiment, *recordings, "--policy", tmp_path / "decode_x.yaml", "--json", "--batch_size", 4)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in recordings]
    out = tmp_path / "out/decode_x/set"
    for number, line in enumerate(lines):
        assert line["text"] == read_scp(out / "1best_recog/text", allow_empty=True)[f"utt{number}"]
        assert str(line["exit_layer"]) == read_scp(out / "utt2exit")[f"utt{number}"]
        assert str(line["macs"]) == read_scp(out / "utt2macs")[f"utt{number}"]
        assert line["seconds"] == pytest.approx(float(read_scp(out / "utt2dur")[f"utt{number}"]), abs=1e-3)
        assert line["policy"] == "x"  # the configuration's name: there may be several of one policy


def test_one_file_is_its_text(experiment: Path, recordings: list[Path], capsys: Captured) -> None:  # noqa: F811
    transcribe(experiment, recordings[0])
    alone = capsys.readouterr()
    transcribe(experiment, recordings[0], recordings[1], "--policy", "fixed")
    several = capsys.readouterr().out.splitlines()
    assert several[0] == f"{recordings[0]}\t{alone.out.rstrip()}" and several[1].startswith(f"{recordings[1]}\t")
    assert alone.err == ""


def test_a_bad_file_stops_nobody(
    experiment: Path,  # noqa: F811
    recordings: list[Path],
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recognise = EarlyExitASR.recognise

    def one_cannot_be(self: EarlyExitASR, batch: Sequence[np.ndarray]) -> list[Recognition]:
        if any(len(samples) == 3 for samples in batch):
            raise UtteranceError("cannot be", 0)
        return recognise(self, batch)

    monkeypatch.setattr(EarlyExitASR, "recognise", one_cannot_be)
    (tmp_path / "bad.wav").write_text("no audio")
    soundfile.write(tmp_path / "three.wav", np.zeros(3), 16000)
    files = [recordings[0], tmp_path / "nowhere.wav", tmp_path / "bad.wav", tmp_path / "three.wav", recordings[1]]
    with pytest.raises(SystemExit) as stop:
        transcribe(experiment, *files, "--batch_size", 3)
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert [line.partition("\t")[0] for line in said.out.splitlines()] == [str(recordings[0]), str(recordings[1])]
    errors = [line for line in said.err.splitlines() if line.startswith("espnet-ee: error: ")]
    assert len(errors) == 3
    assert all(any(name in line for line in errors) for name in ("nowhere.wav", "bad.wav", "three.wav"))


def test_what_was_done_to_a_file_is_said_once(experiment: Path, tmp_path: Path, capsys: Captured) -> None:  # noqa: F811
    samples = np.random.default_rng(0).normal(0, 0.1, (9600, 2))
    for name in ("a.wav", "b.flac", "c.ogg"):
        soundfile.write(tmp_path / name, samples, 48000)
    soundfile.write(tmp_path / "d.wav", samples[:, 0], 8000)
    transcribe(experiment, *sorted(tmp_path.iterdir()))
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("espnet-ee: note: ")]
    assert len(notes) == 2
    assert all(word in notes[0] for word in ("a.wav", "48000 Hz", "2 channels")) and "8000 Hz" in notes[1]


def test_names_with_tabs_and_line_ends_stay_one_cell(experiment: Path, tmp_path: Path, capsys: Captured) -> None:  # noqa: F811
    odd = tmp_path / "a\tb\nc\\d.wav"
    for path in (odd, tmp_path / "e.wav"):
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 9000), 16000)
    transcribe(experiment, odd, tmp_path / "e.wav")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].split("\t")[:-1] == [f"{tmp_path}/a\\tb\\nc\\\\d.wav"]
    transcribe(experiment, odd, "--json")
    assert json.loads(capsys.readouterr().out)["file"] == str(odd)


def test_a_long_recording_is_the_sum_of_its_pieces(experiment: Path, tmp_path: Path, capsys: Captured) -> None:  # noqa: F811
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 8000 * 7), 8000)
    (tmp_path / "first.yaml").write_text("policy: fixed\npolicy_conf: {exit_layer: 1}\n")
    texts, policy = [], ("--policy", tmp_path / "first.yaml")
    for size in (1, 3):
        transcribe(experiment, tmp_path / "long.wav", "--json", "--max_segment_seconds", 2, "--batch_size", size, *policy)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    found = json.loads(texts[0])
    assert found["seconds"] == 7.0 and found["exit_layer"] == 1 and len(found["segments"]) >= 4
    assert found["text"] == " ".join(part["text"] for part in found["segments"] if part["text"])
    assert found["text"] == " ".join(word["text"] for word in found["words"])
    times = [time for word in found["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times) and times[-1] <= 7.0
    whole = EarlyExitASR.from_files(experiment / "config.yaml", next(experiment.glob("*.pth")), tmp_path / "first.yaml")
    assert whole.transcribe_recording(tmp_path / "long.wav", 2.0).text == found["text"]
    with pytest.raises(UsageError, match="max_segment_seconds"):
        transcribe(experiment, tmp_path / "long.wav", "--max_segment_seconds", 0.5)


def test_folders_lists_and_standard_input(
    experiment: Path,  # noqa: F811
    recordings: list[Path],
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "wav.scp").write_text(f"utt1 {recordings[0]}\nutt2 {recordings[1]}\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("sys.stdin", argparse.Namespace(buffer=io.BytesIO(recordings[2].read_bytes())))
    with pytest.raises(SystemExit) as stop:
        transcribe(experiment, tmp_path / "wav.scp", "-", tmp_path / "empty", experiment, "--batch_size", 3)
    said = capsys.readouterr()
    assert stop.value.code == 1 and said.err.count("error") == 1 and "empty: holds no audio file" in said.err
    lines = dict(line.split("\t") for line in said.out.splitlines())
    assert list(lines) == ["utt1", "utt2", "-", *map(str, recordings)]
    assert lines["utt1"] == lines[str(recordings[0])] and lines["-"] == lines[str(recordings[2])]


def test_standard_input_is_called_so_and_read_once(
    experiment: Path,  # noqa: F811
    recordings: list[Path],
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def given(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", argparse.Namespace(buffer=io.BytesIO(content)))

    given(recordings[0].read_bytes())
    transcribe(experiment, "-", "--json")
    assert json.loads(capsys.readouterr().out)["file"] == "-"
    given(b"")
    with pytest.raises(SystemExit):
        transcribe(experiment, "-")
    assert capsys.readouterr().err.startswith("espnet-ee: error: standard input: is empty (0 bytes)")
    with pytest.raises(UsageError, match="standard input is there once"):
        transcribe(experiment, "-", "-")


@pytest.mark.parametrize("utt_id", ["../escaped", "/absolute", "a/b", "x" * 252])
def test_no_id_leads_out_of_the_folder(utt_id: str, recordings: list[Path], tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text(f"{utt_id} {recordings[0]}\n")
    with pytest.raises(UsageError, match="--out: "):
        transcribe(tmp_path, tmp_path / "wav.scp", "--out", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "wav.scp"] and not list((tmp_path / "out").iterdir())


def test_the_longest_name_of_a_file_is_written(experiment: Path, recordings: list[Path], tmp_path: Path) -> None:  # noqa: F811
    name = "x" * 250
    (tmp_path / "wav.scp").write_text(f"{name} {recordings[0]}\n")
    transcribe(experiment, tmp_path / "wav.scp", "--out", tmp_path / "out", "--max_segment_seconds", 1)
    assert (tmp_path / f"out/{name}.txt").is_file()


def test_every_format_into_a_folder(experiment: Path, recordings: list[Path], tmp_path: Path, capsys: Captured) -> None:  # noqa: F811
    for name, suffix in (("text", "txt"), ("json", "json"), ("ctm", "ctm"), ("srt", "srt"), ("vtt", "vtt")):
        transcribe(experiment, *recordings[:2], "--format", name, "--out", tmp_path / "out")
        assert capsys.readouterr().out == ""
        assert all((tmp_path / "out" / f"{path.stem}.{suffix}").is_file() for path in recordings[:2])
    words = (tmp_path / "out" / f"{recordings[0].stem}.txt").read_text().split()
    assert [line.split()[4] for line in (tmp_path / "out" / f"{recordings[0].stem}.ctm").read_text().splitlines()] == words
    with pytest.raises(UsageError, match="--out DIR"):
        transcribe(experiment, *recordings, "--format", "srt")
    (tmp_path / recordings[0].name).write_bytes(recordings[0].read_bytes())
    with pytest.raises(UsageError, match="one file"):
        transcribe(experiment, recordings[0], tmp_path / recordings[0].name, "--out", tmp_path / "out")
    with pytest.raises(UsageError, match="one recording of the ctm"):
        transcribe(experiment, recordings[0], tmp_path / recordings[0].name, "--format", "ctm")
    transcribe(experiment, recordings[0], recordings[0], "--format", "ctm")  # a word is there once
    assert capsys.readouterr().out == (tmp_path / "out" / f"{recordings[0].stem}.ctm").read_text()


def test_nothing_to_do_needs_no_model(tmp_path: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        transcribe(tmp_path / "no model", tmp_path / "a.wav", tmp_path / "b.wav")
    assert stop.value.code == 1 and capsys.readouterr().err.count("no such audio file") == 2


@pytest.mark.parametrize(("policy", "message"), [("entropy", "threshold"), ("entropi", "entropi"), ("posterior", "threshold")])
def test_a_policy_that_cannot_be_is_named(
    policy: str,
    message: str,
    experiment: Path,  # noqa: F811
    recordings: list[Path],
) -> None:
    with pytest.raises(UsageError, match=message) as stop:  # exit status 2
        transcribe(experiment, recordings[0], "--policy", policy)
    assert "policy_conf" not in str(stop.value)


def test_a_package_has_its_policies(experiment: Path, recordings: list[Path], tmp_path: Path, capsys: Captured) -> None:  # noqa: F811
    for name, layer in (("quick", 1), ("slow", 2)):
        (tmp_path / f"decode_{name}.yaml").write_text(f"policy: fixed\npolicy_conf: {{exit_layer: {layer}}}\n")
    configs = [str(tmp_path / f"decode_{name}.yaml") for name in ("quick", "slow")]
    words = ["--name", "x/tiny", "--licence", "other", "--training_data", "noise", "--config", *configs]
    files = ["--model", experiment, "--model_file", next(experiment.glob("*.pth")), "--out", tmp_path / "package"]
    main(["pack", *words, *map(str, files)])
    for more, layer in (((), 1), (("--policy", "slow"), 2)):
        capsys.readouterr()
        transcribe(tmp_path / "package", recordings[0], "--json", *more)
        assert json.loads(capsys.readouterr().out)["exit_layer"] == layer


def test_a_budget_is_kept_on_average(experiment: Path, recordings: list[Path], capsys: Captured) -> None:  # noqa: F811
    costs: dict[int, float] = {}
    for layer in (1, 2, 4):
        config = experiment / f"fixed{layer}.yaml"
        config.write_text(f"policy: fixed\npolicy_conf: {{exit_layer: {layer}}}\n", encoding="utf-8")
        transcribe(experiment, *recordings, "--json", "--policy", config)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        costs[layer] = sum(line["macs"] for line in lines) / sum(line["seconds"] for line in lines)
    table = "kind,name,depth,macs_per_second\n" + "".join(f"fixed,exit {n},{n},{cost}\n" for n, cost in costs.items())
    with pytest.raises(UserError, match=r"exits\.csv"):
        transcribe(experiment, *recordings, "--budget", 1)
    (experiment / "exits.csv").write_text(table, encoding="utf-8")
    try:
        exits = {}
        for budget in (costs[1], (costs[1] + costs[4]) / 2, costs[4]):
            transcribe(experiment, *recordings, "--json", "--budget", budget / 1e6)
            lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            exits[budget] = [line["exit_layer"] for line in lines]
        first, middle, last = exits.values()
        assert set(last) == {4}
        assert set(first) == {1}
        assert sum(first) < sum(middle) < sum(last)
        for budget, said in (
            (costs[1] / 2, "even the cheapest point of the model, exit 1"),
            (2 * costs[4], "the dearest point of the model, exit 4"),
        ):
            transcribe(experiment, *recordings, "--budget", budget / 1e6)
            notes = [line for line in capsys.readouterr().err.splitlines() if "--budget" in line]
            assert len(notes) == 1 and said in notes[0] and "it is taken throughout" in notes[0]
        (experiment / "exits.csv").write_text(table.replace("fixed,exit 4,4,", "fixed,exit 4,4,9"), encoding="utf-8")
        with pytest.raises(UserError, match=r"exits\.csv: is of another model: exit 4"):
            transcribe(experiment, *recordings, "--budget", 1)
        with pytest.raises(UsageError, match="--policy"):
            transcribe(experiment, *recordings, "--budget", 1, "--policy", "fixed")
        with pytest.raises(UserError, match="budget"):
            transcribe(experiment, *recordings, "--budget", 0)
    finally:
        (experiment / "exits.csv").unlink()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--hotwords", "ANNA,NEW  YORK, ,B"], {"ANNA": 6.0, "NEW YORK": 6.0, "B": 6.0}),
        (["--hotwords", "ANNA", "--hotword_boost", "3"], {"ANNA": 3.0}),
        (["--hotwords", "{folder}/words.txt", "--hotword_boost", "2"], {"ANNA": 2.0, "NEW YORK": 7.5}),
        ([], {}),
    ],
)
def test_hotwords_come_from_the_command_line_or_a_file(
    experiment: Path,  # noqa: F811
    recordings: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: dict[str, float],
) -> None:
    (tmp_path / "words.txt").write_text("ANNA\n\nNEW YORK\t7.5\n")
    monkeypatch.setattr(EarlyExitASR, "from_pretrained", lambda *arguments: asked.append(arguments[-1]) or 1 / 0)
    asked: list[object] = []
    with pytest.raises(ZeroDivisionError):
        transcribe(experiment, recordings[0], *(word.format(folder=tmp_path) for word in words))
    assert asked == [expected]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("--hotword_boost 3", UsageError, "is of --hotwords"),
        ("--hotwords ,", UsageError, "there is no hotword"),
        ("--hotwords A --hotword_boost -1", UsageError, "boost of the hotword 'A' is -1"),
        ("--hotwords {folder}/bad.txt", UserError, "bad.txt: 'much' is no boost"),
        ("--hotwords {folder}/twice.txt", UserError, "twice.txt: 'A B' is there twice"),
        ("--hotwords {folder}/empty.txt", UserError, "empty.txt: search: there is no hotword"),
        ("--hotwords \u017c", UserError, "the hotword '\u017c' cannot be spelled"),
    ],
)
def test_hotwords_that_cannot_be_are_one_line(
    experiment: Path,  # noqa: F811
    recordings: list[Path],
    tmp_path: Path,
    words: str,
    error: type[UserError],
    message: str,
) -> None:
    (tmp_path / "bad.txt").write_text("A\tmuch\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "twice.txt").write_text("A B\t1\nA  B\t2\n")
    with pytest.raises(UserError, match=message) as caught:
        transcribe(experiment, recordings[0], *words.format(folder=tmp_path).split())
    assert type(caught.value) is error


def test_a_hotword_is_heard(experiment: Path, recordings: list[Path], capsys: Captured) -> None:  # noqa: F811
    transcribe(experiment, recordings[0], "--policy", "fixed")
    before = capsys.readouterr().out.split()
    transcribe(experiment, recordings[0], "--policy", "fixed", "--hotwords", "AB", "--hotword_boost", "100")
    after = capsys.readouterr().out.split()
    assert "AB" not in before and "AB" in after


def test_an_experiments_default_is_its_first_calibrated_policy(
    experiment: Path,  # noqa: F811
    recordings: list[Path],
    capsys: Captured,
) -> None:
    (experiment / "policies").mkdir()
    try:
        (experiment / "policies/decode_quick.yaml").write_text("policy: fixed\npolicy_conf: {exit_layer: 1}\n")
        for words, layer in (((), 1), (("--policy", "fixed"), 4)):
            transcribe(experiment, recordings[0], "--json", *words)
            assert json.loads(capsys.readouterr().out)["exit_layer"] == layer
    finally:
        shutil.rmtree(experiment / "policies")


def test_integers_kept_as_floats_are_refused_and_loud_ones_taken(
    experiment: Path,  # noqa: F811
    tmp_path: Path,
    capsys: Captured,
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 60000)
    for name, scale in (("whole", 32768.0), ("loud", 10.0), ("master", 2.5)):
        for seconds in (1, 3):  # in one piece, and in several
            soundfile.write(tmp_path / f"{name}{seconds}.wav", noise[: 16000 * seconds] * scale, 16000, subtype="FLOAT")
    with pytest.raises(SystemExit):
        transcribe(experiment, *sorted(tmp_path.glob("*.wav")), "--max_segment_seconds", 2)
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 4
    errors = [line for line in said.err.splitlines() if "error" in line]
    assert len(errors) == 2 and all("whole" in line and "divide them by their full scale" in line for line in errors)
    notes = [line for line in said.err.splitlines() if "note" in line]
    assert len(notes) == 1 and "loud1.wav: louder than twice full scale" in notes[0]


def test_nobody_with_a_wav_is_told_of_recipes(experiment: Path, tmp_path: Path, capsys: Captured) -> None:  # noqa: F811
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "good.wav", np.zeros(16000), 16000)
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "mine.txt").write_text(f"{tmp_path}/none.wav\n")
    with pytest.raises(SystemExit):
        transcribe(experiment, *sorted(tmp_path.iterdir()))
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    (tmp_path / "model").mkdir()
    for words in (
        ("--model", tmp_path / "model"),
        ("--model", experiment, "--budget", 1),
        ("--model", experiment, "--policy", "x"),
    ):
        with pytest.raises(UserError) as stop:
            main(["transcribe", str(tmp_path / "good.wav"), *map(str, words)])
        errors.append(str(stop.value))
    told = re.compile(r"stage|corpus|utterance|recipe|data directory|scp|asr\.sh|train")
    assert not [line for line in errors if told.search(line.replace(str(tmp_path), ""))]
