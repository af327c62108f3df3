"""``espnet-ee transcribe``: audio files to text, each at the exit that its policy chooses."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_ee.cli.parser import Parser
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import is_file
from espnet_ee.policy.budget import Budget, BudgetController, read_curve, schedule
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.registry import POLICIES
from espnet_ee.policy.table import escape

if TYPE_CHECKING:
    import numpy as np

    from espnet_ee.api import EarlyExitASR
    from espnet_ee.decode.loop import Recognition


def add_transcribe(parser: Parser) -> None:
    """Options of ``espnet-ee transcribe``."""
    parser.description = (
        "Transcribes audio files of any format that libsndfile reads, any sampling rate and channels. Prints the text; of\n"
        "several files, file and text with a tab between them (in a file's name tab, line ends and backslash are written \\t, \\n,\n"
        "\\r and \\\\). A file that cannot be read is named, the others are done, and the exit status is 1."
    )
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="audio file")
    parser.option(
        "--model", "folder of a package, an experiment (exp/asr_...) or an export, or a name on the hub", required=True
    )
    names = ", ".join(POLICIES)
    parser.option(
        "--policy",
        "when to stop: the name of a calibrated configuration of the model, a decoding configuration's file, or one of "
        f"{names}, if it needs no settings (default: the package's default, else the last exit)",
        metavar="NAME|FILE",
    )
    parser.option(
        "--budget",
        "million MACs per second of audio that are kept on average, in place of --policy: the policy of each batch is chosen\n"
        "for it (of those calibrated and the fixed exits, by the exits.csv in the model's folder)",
        type=float,
        metavar="MMACS",
    )
    parser.option("--json", "one JSON object a line: file, text, exit_layer, seconds, macs, policy", action="store_true")
    parser.option(
        "--engine",
        "what computes: torch, or onnx (ONNX Runtime: the model's onnx folder, which espnet-ee export makes); default: torch\n"
        "where it is installed and the model has its tensors",
        choices=("torch", "onnx"),
    )
    parser.option(
        "--int8", "the exported graphs with 8-bit weights (default: only where there are no others)", action="store_true"
    )
    parser.option("--batch_size", "files recognised together", type=int, metavar="N")
    parser.option("--num_threads", "CPU threads", type=int, metavar="N")
    parser.option("--device", "torch device", default="cpu")
    parser.set_defaults(run=_transcribe)


class _Problems:
    """What went wrong with files, one line each on stderr; and what was done to them, once per kind."""

    def __init__(self) -> None:
        self.count = 0
        self._said: set[str] = set()

    def fail(self, error: UserError) -> None:
        self.count += 1
        self._print(f"error: {error}")

    def note(self, path: str, note: str) -> None:
        if note and note not in self._said:
            self._said.add(note)
            self._print(f"note: {path}: {note} (said once)")

    def _print(self, line: str) -> None:
        print(f"espnet-ee: {' '.join(line.split())}", file=sys.stderr, flush=True)


def _transcribe(options: argparse.Namespace) -> None:
    numbers = {"batch_size": options.batch_size, "num_threads": options.num_threads}
    DecodingConfig().changed(**numbers)  # what is wrong is said before a model is loaded for seconds
    budget = _budget(options)
    problems = _Problems()
    if not any(is_file(path) for path in options.audio):  # so is this
        for path in options.audio:
            problems.fail(UserError(f"{path}: no such audio file; check the path"))
        raise SystemExit(1)
    with _quiet():
        from espnet_ee.api import EarlyExitASR  # ESPnet takes seconds to import

        int8 = options.int8 or None
        recogniser = EarlyExitASR.from_pretrained(options.model, options.policy, options.device, options.engine, int8)
    name = recogniser.policy_name
    recogniser.use(recogniser.config.changed(**numbers))
    if options.num_threads is not None:
        recogniser.session.use_threads(options.num_threads)
    controller = None
    if budget is not None:
        controller = BudgetController(read_curve(Path(options.model) / "exits.csv", recogniser.configs), budget)
    for batch in _batches(options.audio, recogniser, problems):
        if controller:
            point = controller.next_point()
            name = point.name
            recogniser.use(replace(recogniser.config, policy=point.policy))
        for path, seconds, recognition in _recognise(batch, recogniser, problems):
            print(_line(options, path, seconds, recognition, name), flush=True)
            if controller:
                controller.spend(seconds, recognition.macs)
    if problems.count:
        raise SystemExit(1)


def _budget(options: argparse.Namespace) -> Budget | None:
    if options.budget is None:
        return None
    if options.policy is not None:
        raise UsageError("--budget chooses the policies; leave --policy out")
    if not (Path(options.model) / "exits.csv").is_file():
        raise UserError(
            f"{options.model}/exits.csv: no such file; --budget needs a scored model's folder (stage 13, or a package)"
        )
    return schedule([(0.0, options.budget * 1e6)])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what ESPnet and its libraries print and warn of while they are imported: stdout is for texts, stderr for problems."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


Batch = list[tuple[str, "np.ndarray"]]


def _batches(paths: Sequence[str], recogniser: EarlyExitASR, problems: _Problems) -> Iterator[Batch]:
    """The files that can be read, as samples, so many at a time."""
    from espnet_ee.data.audio import read_any

    batch: Batch = []
    for path in paths:
        try:
            samples, note = read_any(path, recogniser.sample_rate)
        except UserError as error:
            problems.fail(error)
            continue
        problems.note(path, note)
        batch.append((path, samples))
        if len(batch) == recogniser.config.batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _recognise(batch: Batch, recogniser: EarlyExitASR, problems: _Problems) -> Iterator[tuple[str, float, Recognition]]:
    """Path, seconds of audio and recognition of each; one that cannot be recognised does not take the others with it."""
    try:
        recognitions = recogniser.recognise([samples for _, samples in batch])
    except UserError as error:
        if len(batch) > 1:
            for item in batch:
                yield from _recognise([item], recogniser, problems)
            return
        problems.fail(UserError(f"{batch[0][0]}: {error}"))
        return
    for (path, samples), recognition in zip(batch, recognitions, strict=True):
        yield path, len(samples) / recogniser.sample_rate, recognition


def _line(options: argparse.Namespace, path: str, seconds: float, recognition: Recognition, policy: str) -> str:
    if options.json:
        fields = {"file": path, "text": recognition.text, "exit_layer": recognition.exit_layer, "seconds": round(seconds, 3)}
        return json.dumps({**fields, "macs": recognition.macs, "policy": policy}, ensure_ascii=False)
    return f"{escape(path)}\t{recognition.text}" if len(options.audio) > 1 else recognition.text
