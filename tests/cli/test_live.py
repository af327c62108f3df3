"""Live audio on the command line: a file by its own clock, a microphone, and what is missing of either."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from espnet_ee.cli import live
from espnet_ee.cli.main import main
from espnet_ee.errors import UsageError, UserError, run
from tests import tiny

Captured = pytest.CaptureFixture[str]
CONF = {**tiny.CONFORMER, "exit_layers": [1, 2, 4], "chunk_range": [2, 6], "left_frames": 6}
SETTINGS: dict[str, Any] = {
    "encoder": "early_exit_fast_conformer",
    "encoder_conf": {key: value for key, value in CONF.items() if key != "macaron_style"},
    "frontend": "kaldi_fbank",
    "frontend_conf": {},
    "normalize": None,
}
RATE = 16000


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streaming")
    tiny.save(folder, tiny.model(seed=3, **SETTINGS), **SETTINGS)
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.2, 2 * RATE), RATE)
    return path


def transcribe(*words: object) -> None:
    main(["transcribe", "--live", *map(str, words)])


def test_a_file_gives_partial_and_final_lines(experiment: Path, recording: Path, capsys: Captured) -> None:
    transcribe(recording, "--model", experiment, "--no_wait")
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {kind for kind, _ in lines} == {"partial", "final"}
    partials = [text for kind, text in lines if kind == "partial"]
    assert all(one != other for one, other in pairwise(partials))
    transcribe(recording, "--model", experiment, "--no_wait", "--format", "json", "--chunk_ms", 160, "--partial_exit", 2, "--silence_ms", 5000)  # fmt: skip
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not {one["text"] for one in objects if one["kind"] == "partial"} & set(partials)
    (final,) = [one for one in objects if one["kind"] == "final"]
    assert (final["start"], final["exit_layer"]) == (0.0, 4) and 1.9 <= final["end"] <= 2.0
    assert " ".join(word["text"] for word in final["words"]) == final["text"]
    transcribe(recording, "--model", experiment, "--no_wait", "--policy", "fixed", "--json", "--max_segment_seconds", 1)
    finals = [one for one in map(json.loads, capsys.readouterr().out.splitlines()) if one["kind"] == "final"]
    assert [one["exit_layer"] for one in finals] == [4, 4] and 1.0 <= finals[0]["end"] <= 1.3


def test_it_keeps_the_files_time(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    samples = 0
    for block in live._played(recording, RATE, no_wait=False):
        samples += len(block)
        assert now[0] - 100.0 == pytest.approx(samples / RATE)
        now[0] += 0.03  # computing takes its time from the waiting
    assert samples == 2 * RATE and max(slept[1:]) == pytest.approx(0.07)
    assert time.monotonic is not live.time.monotonic


def test_a_terminals_line_changes(capsys: Captured) -> None:
    from espnet_ee.decode.stream import Partial

    show = live._Printer(as_json=False, terminal=True)
    for text in ("A", "A", "A B", "C" * 500):
        show(Partial(text, 0.0))
    assert capsys.readouterr().out.startswith("\r\x1b[KA\r\x1b[KA B\r\x1b[KCC")


def package(missing: bool = False, refused: bool = False, silent: bool = False) -> ModuleType:
    """A sounddevice of its own: of two seconds, then somebody interrupts it."""

    class PortAudioError(Exception):
        pass

    def query_devices(kind: str) -> None:
        assert kind == "input"
        if missing:
            raise PortAudioError("Error querying device -1")

    class InputStream:
        def __init__(self, rate: int, size: int, channels: int, dtype: str, callback: Callable[..., None]) -> None:
            if refused:
                raise PortAudioError("Invalid sample rate")
            assert (rate, size, channels, dtype) == (RATE, 1600, 1, "float32")
            self.callback = callback

        def __enter__(self) -> None:
            buffer = np.zeros((1600, 1), np.float32)  # one for all blocks, as PortAudio has it
            for number in range(0 if silent else 20):
                buffer[:, 0] = np.random.default_rng(number).normal(0, 0.2, 1600)
                self.callback(buffer, 1600, None, None)

        def __exit__(self, *_: object) -> None: ...

    made = ModuleType("sounddevice")
    made.__dict__.update(query_devices=query_devices, InputStream=InputStream, PortAudioError=PortAudioError)
    return made


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_microphone(experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, interrupted: bool) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", package())
    blocks = live.queue.SimpleQueue

    class Queue(blocks):
        def get(self, *_: object, **__: object) -> Any:
            if self.empty() and interrupted:
                raise KeyboardInterrupt
            return super().get(timeout=0.01)

    monkeypatch.setattr(live.queue, "SimpleQueue", Queue)
    if not interrupted:
        with pytest.raises(UserError, match="given nothing for 5 seconds"):
            transcribe("--model", experiment)
        return
    transcribe("--model", experiment)
    captured = capsys.readouterr()
    microphone = [line for line in captured.out.splitlines() if line.startswith("final\t")]
    assert "listening" in captured.err and len(microphone) == 1
    samples = np.concatenate([np.random.default_rng(number).normal(0, 0.2, 1600) for number in range(20)]).astype(np.float32)
    stream = tiny.asr(tiny.model(seed=3, **SETTINGS)).stream()
    (final,) = [final for partial in (stream.feed(samples), stream.finish()) for final in partial.finals]
    assert microphone == [f"final\t{final.text}"]


def test_a_microphone_that_is_not_there(experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", package(missing=True))
    with pytest.raises(UserError, match="no microphone is there"):
        transcribe("--model", experiment)
    monkeypatch.setitem(sys.modules, "sounddevice", package(refused=True))
    with pytest.raises(UserError, match="cannot be read at 16000 Hz"):
        transcribe("--model", experiment)
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # as if it were not installed
    with pytest.raises(SystemExit) as stop:
        run(lambda: transcribe("--model", experiment))
    assert stop.value.code == 1
    assert capsys.readouterr().err.endswith("sounddevice is not installed; in the project's folder: pip install -e '.[live]'\n")


def test_a_package_without_its_library(experiment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(UserError, match="PortAudio library not found.*libportaudio2"):
        transcribe("--model", experiment)
    settings = {**SETTINGS, "encoder_conf": {**SETTINGS["encoder_conf"], "chunk_range": []}}
    tiny.save(tmp_path, tiny.model(**settings), **settings)
    with pytest.raises(UserError, match="was not trained for chunks"):  # nobody is to install what is of no use
        transcribe("--model", tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.wav", "b.wav"], "one AUDIO file"),
        (["a.wav", "--format", "srt"], "there is text and json"),
        (["a.wav", "--out", "o"], "--out is not for --live"),
        (["a.wav", "--budget", "3"], "--budget is not for --live"),
        (["a.wav", "--engine", "onnx"], "--engine is not for --live"),
        (["a.wav", "--int8"], "--int8 is not for --live"),
    ],
)
def test_what_does_not_go_together(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        transcribe(*words, "--model", "nowhere")


def test_live_options_without_live(recording: Path) -> None:
    for words in (["--chunk_ms", "320"], ["--partial_exit", "2"], ["--silence_ms", "800"], ["--no_wait"]):
        with pytest.raises(UsageError, match=f"{words[0]}: is for --live"):
            main(["transcribe", str(recording), "--model", "nowhere", *words])
    with pytest.raises(UsageError, match="no AUDIO: name files"):
        main(["transcribe", "--model", "nowhere"])


def test_a_file_that_is_not_there(experiment: Path, recording: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such audio file"):
        transcribe(tmp_path / "a.wav", "--model", "nowhere")
    with pytest.raises(UsageError, match="multiple of 40 ms"):
        transcribe(recording, "--model", experiment, "--chunk_ms", 100)
    with pytest.raises(UsageError, match="silence is 0.0 seconds"):
        transcribe(recording, "--model", experiment, "--silence_ms", 0)


def test_output_that_is_no_terminal_is_not_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from espnet_ee.decode.stream import Partial

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    live._Printer(as_json=False, terminal=False)(Partial("A", 0.0))
    assert out.buffer.getvalue() == b"partial\tA\n"
