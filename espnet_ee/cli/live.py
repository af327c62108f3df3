"""``espnet-ee transcribe --live``: a microphone, or a file at the speed at which it was spoken, to partial and final texts."""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_ee.cli.parser import Parser
from espnet_ee.errors import UsageError, UserError

if TYPE_CHECKING:
    import numpy as np

    from espnet_ee.api import EarlyExitASR
    from espnet_ee.decode.stream import Final, Partial

_BLOCK_SECONDS = 0.1
_DEAD_SECONDS = 5.0  # a microphone that gives nothing for so long is gone
_NAMES = ("chunk_ms", "partial_exit", "silence_ms", "no_wait")


def add_live(parser: Parser) -> None:
    """The options of ``espnet-ee transcribe`` that are for live audio."""
    group = parser.add_argument_group("live")
    group.add_argument("--live", action="store_true", help="the microphone, or one AUDIO file as if it were said now; by a model that was trained for chunks")  # fmt: skip
    group.add_argument("--chunk_ms", type=int, metavar="MS", help="milliseconds from one partial text to the next (320)")
    group.add_argument("--partial_exit", type=int, metavar="N", help="the exit of partial texts (the first); --policy says how deep final ones go")  # fmt: skip
    group.add_argument("--silence_ms", type=int, metavar="MS", help="milliseconds of silence that make a text final (800)")
    group.add_argument("--no_wait", action="store_true", help="a file as fast as it can be computed")


def check_live(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, before a model is loaded."""
    if not options.live:
        for name in _NAMES:
            if getattr(options, name):
                raise UsageError(f"--{name}: is for --live")
        if not options.audio:
            raise UsageError("no AUDIO: name files, folders or lists, - for standard input, or --live for the microphone")
        return
    for name in ("budget", "out", "engine", "int8"):
        if getattr(options, name) not in (None, False, "torch"):
            raise UsageError(f"--{name} is not for --live; leave it out")
    if options.nj != 1:
        raise UsageError("--nj is not for --live; leave it out")
    if options.format not in ("text", "json"):
        raise UsageError(f"--format {options.format}: of what is said now there is text and json")
    if len(options.audio) > 1:
        raise UsageError("--live: give one AUDIO file, or none for the microphone")
    if options.audio:
        from espnet_ee.data.audio import count_samples

        count_samples(options.audio[0])


def transcribe_live(options: argparse.Namespace, recogniser: EarlyExitASR) -> None:
    """Prints what is said until the file ends, or until somebody interrupts the microphone; :func:`check_live` has seen the options."""
    from espnet_ee.decode.stream import Endpoint

    silence = Endpoint.silence if options.silence_ms is None else options.silence_ms / 1000
    endpoint = Endpoint(silence, longest=options.max_segment_seconds)
    chunk_ms = 320 if options.chunk_ms is None else options.chunk_ms
    stream = recogniser.stream(chunk_ms, options.partial_exit, endpoint)
    rate, show = recogniser.sample_rate, _Printer(options.format == "json", sys.stdout.isatty())
    source = _played(Path(options.audio[0]), rate, options.no_wait) if options.audio else _microphone(rate)
    try:
        for samples in source:
            show(stream.feed(samples))
    except KeyboardInterrupt:  # how one stops talking
        pass
    show(stream.finish())


def _played(path: Path, rate: int, no_wait: bool) -> Iterator[np.ndarray]:
    """A file's samples, each when it would have been said."""
    from espnet_ee.data.audio import read_any

    samples, _ = read_any(path, rate)
    size, started = max(1, int(_BLOCK_SECONDS * rate)), time.monotonic()
    for start in range(0, len(samples), size):
        block = samples[start : start + size]
        if not no_wait:
            time.sleep(max(0.0, started + (start + len(block)) / rate - time.monotonic()))
        yield block


def _sounddevice() -> Any:
    """The package that records, where there is something to record with."""
    try:
        import sounddevice
    except OSError as error:
        raise UserError(f"sounddevice cannot record here ({error}); install PortAudio (Debian: libportaudio2)") from None
    try:
        sounddevice.query_devices(kind="input")
    except (sounddevice.PortAudioError, ValueError) as error:
        raise UserError(f"no microphone is there ({error}); plug one in, or give --live an audio file") from None
    return sounddevice


def _microphone(rate: int) -> Iterator[np.ndarray]:
    """What is said now."""
    sounddevice, blocks = _sounddevice(), queue.SimpleQueue[Any]()

    def record(samples: Any, *_: Any) -> None:
        blocks.put(samples[:, 0].copy())

    try:
        size = int(_BLOCK_SECONDS * rate)
        with sounddevice.InputStream(rate, size, channels=1, dtype="float32", callback=record):
            print("espnet-ee: listening; Ctrl-C ends", file=sys.stderr, flush=True)
            while True:
                yield blocks.get(timeout=_DEAD_SECONDS)
    except queue.Empty:
        raise UserError(f"the microphone has given nothing for {_DEAD_SECONDS:g} seconds; check it") from None
    except sounddevice.PortAudioError as error:
        raise UserError(f"the microphone cannot be read at {rate} Hz ({error}); check it and its permissions") from None


class _Printer:
    """Lines of partial and final texts: words ``partial`` or ``final`` before a tab, or objects; on a terminal the last line changes."""

    def __init__(self, as_json: bool, terminal: bool) -> None:
        self.write: Callable[[Sequence[Final], str, float], None]
        self.write = self._objects if as_json else self._screen if terminal else self._lines
        self._last = ""

    def __call__(self, partial: Partial) -> None:
        """Shows what is new."""
        if partial.finals or partial.text != self._last:
            self.write(partial.finals, partial.text, partial.start)
            sys.stdout.flush()
        self._last = partial.text

    def _lines(self, finals: Sequence[Final], text: str, start: float) -> None:
        for final in finals:
            print(f"final\t{final.text}")
        if text:
            print(f"partial\t{text}")

    def _screen(self, finals: Sequence[Final], text: str, start: float) -> None:
        print("\r\x1b[K", end="")
        for final in finals:
            print(final.text)
        width = max(1, shutil.get_terminal_size().columns - 1)
        print(text[-width:], end="")

    def _objects(self, finals: Sequence[Final], text: str, start: float) -> None:
        for final in finals:
            words = [
                {key: value if key == "text" else round(value, 4) for key, value in asdict(word).items()}
                for word in final.words
            ]
            times = {"start": round(final.start, 3), "end": round(final.end, 3)}
            spent = {"exit_layer": final.recognition.exit_layer, "macs": final.recognition.macs}
            _print_object({"kind": "final", "text": final.text, **times, **spent, "words": words})
        if text:
            _print_object({"kind": "partial", "text": text, "start": round(start, 3)})


def _print_object(content: dict[str, Any]) -> None:
    print(json.dumps(content, ensure_ascii=False))
