"""Transcripts into a folder: interrupted and run again it finishes the rest; and several processes, which change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ee.api import EarlyExitASR
from espnet_ee.cli.main import main
from espnet_ee.cli.reports import Progress
from espnet_ee.decode.recognition import Recognition
from espnet_ee.errors import UsageError, UserError
from tests.runtime.exports import write_export

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_export(tmp_path / "model/onnx", frame_seconds=0.01)
    return tmp_path / "model"


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """Three recordings in a folder, of 1, 9 and 2 seconds."""
    (tmp_path / "audio").mkdir()
    for name, seconds in (("a", 1), ("b", 9), ("c", 2)):
        soundfile.write(tmp_path / f"audio/{name}.wav", np.random.default_rng(seconds).normal(0, 0.1, 8000 * seconds), 8000)
    return tmp_path / "audio"


@pytest.fixture
def recognised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all pieces that are recognised; a 0 at the start interrupts what comes after four of them."""
    lengths: list[int] = []
    recognise = EarlyExitASR.recognise

    def counted(self: EarlyExitASR, batch: Sequence[np.ndarray]) -> list[Recognition]:
        if lengths[:1] == [0] and len(lengths) > 4:
            raise KeyboardInterrupt
        lengths.extend(len(samples) for samples in batch)
        return recognise(self, batch)

    monkeypatch.setattr(EarlyExitASR, "recognise", counted)
    return lengths


def transcribe(model: Path, *words: object) -> None:
    main(["transcribe", "--model", str(model), "--max_segment_seconds", "2", *map(str, words)])


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


@pytest.mark.parametrize("size", [1, 2])
def test_interrupted_and_run_again_it_finishes_the_rest(
    size: int, model: Path, audio: Path, tmp_path: Path, recognised: list[int], capsys: Captured
) -> None:
    def run(out: str) -> None:
        transcribe(model, audio, "--batch_size", size, "--format", "json", "--out", tmp_path / out)

    run("whole")
    pieces = list(recognised)
    recognised[:] = [0]
    with pytest.raises(KeyboardInterrupt):
        run("out")
    assert list(contents(tmp_path / "out")) == ["a.json"] and len(recognised) == 5
    journal = tmp_path / "out/.b.json.journal"
    assert sum(line.count('"exit_layer"') for line in journal.read_text().splitlines()[1:]) == 3
    with open(journal, "a") as stream:
        stream.write('{"seconds": 0.0, "resu')  # as a kill leaves it
    recognised.clear()
    run("out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert recognised == pieces[4:]
    assert not list((tmp_path / "out").glob(".*.journal"))
    assert "1 of 3 transcripts are in" in capsys.readouterr().err


def test_what_is_there_is_made_again_when_anything_changed(
    model: Path, audio: Path, tmp_path: Path, recognised: list[int]
) -> None:
    files, out = [audio / "a.wav", audio / "c.wav"], tmp_path / "out"

    def made(*words: object) -> int:
        recognised.clear()
        transcribe(model, *files, "--out", out, *words)
        return len(recognised)

    assert made() == 2 and made() == 0 and made("--batch_size", 3, "--num_threads", 1) == 0
    (tmp_path / "first.yaml").write_text("policy: fixed\npolicy_conf: {exit_layer: 1}\n")
    for words in (("--policy", tmp_path / "first.yaml"), ("--format", "ctm"), ("--hotwords", "A"), ("--int8",)):
        assert made(*words) == 2 and made(*words) == 0, words
    assert made("--max_segment_seconds", 3) == 2
    assert made() == 2
    (out / "a.txt").unlink()
    assert made() == 1
    files[1].write_bytes((audio / "b.wav").read_bytes())
    assert made() > 1 and made() == 0
    with open(out / ".transcribed", "a") as stream:
        stream.write('["a.txt", "\n[3]\nnothing\n')
    assert made() == 0
    graph = model / "onnx/segment_04.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x0a\x00")
    assert made() > 2


def test_words_are_moved_as_the_configuration_says(model: Path, audio: Path, tmp_path: Path, capsys: Captured) -> None:
    found = []
    for name, shift in (("as_it_is", "[0, 0]"), ("earlier", "[-0.005, -0.004]")):
        (tmp_path / f"{name}.yaml").write_text(f"policy: fixed\nword_shift: {shift}\n")
        transcribe(model, audio / "a.wav", "--json", "--policy", tmp_path / f"{name}.yaml")
        found.append(json.loads(capsys.readouterr().out)["words"])
    before, after = ([(word["start"], word["end"]) for word in words] for words in found)
    assert len(before) == len(after) > 1 and before != after
    assert after[1:] == [
        (pytest.approx(start - 0.005, abs=2e-3), pytest.approx(end - 0.004, abs=2e-3)) for start, end in before[1:]
    ]


def test_one_that_fails_is_tried_again_and_the_others_stay(
    model: Path, audio: Path, tmp_path: Path, recognised: list[int], capsys: Captured
) -> None:
    content = (audio / "c.wav").read_bytes()
    (audio / "c.wav").write_text("no audio")
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            transcribe(model, audio, "--out", tmp_path / "out")
        assert stop.value.code == 1 and capsys.readouterr().err.count("c.wav: not readable") == 1
    assert len(recognised) == 1 + 5 or len(recognised) == 1 + 6
    before = len(recognised)
    (audio / "c.wav").write_bytes(content)
    transcribe(model, audio, "--out", tmp_path / "out")
    assert len(recognised) == before + 1 and len(contents(tmp_path / "out")) == 3


def test_a_folder_that_cannot_be_is_said_before_anything_is_computed(
    model: Path, audio: Path, tmp_path: Path, recognised: list[int]
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/inside"):
        with pytest.raises(UserError, match="--out .*cannot be made a folder"):
            transcribe(model, audio, "--out", out)
    assert not recognised


@pytest.mark.process
def test_processes_change_nothing(model: Path, audio: Path, tmp_path: Path, capfd: Captured) -> None:
    (audio / "bad.wav").write_text("no audio")
    said = []
    for count in (1, 2):
        with pytest.raises(SystemExit) as stop:
            transcribe(model, audio, "--json", "--nj", count)
        assert stop.value.code == 1
        said.append(capfd.readouterr())
    assert said[0].out == said[1].out
    assert [Path(json.loads(line)["file"]).stem for line in said[0].out.splitlines()] == ["a", "b", "c"]
    assert all("bad.wav" in one.err and one.err.count("error") == 1 for one in said)
    for words in (("--nj", 0), ("--nj", 2, "--live"), ("--nj", 2, "--budget", 1)):
        with pytest.raises(UsageError, match="--nj"):
            transcribe(model, audio / "a.wav", *words)


@pytest.mark.process
def test_processes_of_torch_change_nothing(audio: Path, tmp_path: Path, capfd: Captured) -> None:
    from tests import tiny  # torch is not needed for the others

    (tmp_path / "torch").mkdir()
    made = tiny.model(seed=3)
    made.ctc.ctc_lo.bias.data[0] -= 9.0  # of blanks alone there would be no text
    tiny.save(tmp_path / "torch", made)
    capfd.readouterr()  # what ESPnet prints while it is imported
    said = []
    for count in (1, 2):
        transcribe(tmp_path / "torch", audio, "--json", "--batch_size", 2, "--nj", count)
        said.append([json.loads(line) for line in capfd.readouterr().out.splitlines()])
    assert said[0] == said[1] and [Path(one["file"]).stem for one in said[0]] == ["a", "b", "c"]
    assert all(one["text"] for one in said[0])


@pytest.mark.process
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL], ids=lambda sign: sign.name)
def test_no_process_outlives_the_command(sign: signal.Signals, model: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 16000 * 3600), 16000)
    words = ["transcribe", str(tmp_path / "long.wav"), "--model", str(model), "--nj", "2", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "espnet_ee.cli", *words, "--max_segment_seconds", "2"]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's job in the background is started deaf to it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listen) as process:
        journal = tmp_path / "out/.long.txt.journal"
        wait_for(lambda: journal.is_file() and journal.read_text().count("\n") > 3)
        workers = children(process.pid)
        assert len(workers) >= 2
        os.killpg(process.pid, sign) if sign == signal.SIGINT else process.send_signal(sign)
        assert process.wait(60) != 0
        wait_for(lambda: not any(map(is_running, workers)))
    assert journal.read_text().count("\n") > 3 and not (tmp_path / "out/long.txt").exists()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(happened: object, seconds: float = 120.0) -> None:
    assert callable(happened)
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_progress_of_a_long_run(capsys: Captured) -> None:
    times: Iterator[float] = iter([0.0, 10.0, 40.0, 60.0, 80.0])
    asked: list[int] = []
    progress = Progress(lambda: asked.append(1) or 3600.0, clock=lambda: next(times))
    progress.advance(600.0)
    assert capsys.readouterr().err == "" and not asked
    for _ in range(3):
        progress.advance(600.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "espnet-ee: 0:20:00 of 1:00:00 done, 30 times as fast as it was said; 0:01:20 left",
        "espnet-ee: 0:40:00 of 1:00:00 done, 30 times as fast as it was said; 0:00:40 left",
    ]
    assert asked == [1]
