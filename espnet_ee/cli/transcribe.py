"""``espnet-ee transcribe``: audio files to text, each at the exit that its policy chooses."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_ee.cli.live import add_live, check_live, transcribe_live
from espnet_ee.cli.parser import Parser
from espnet_ee.data.audio_files import AudioFile, audio_files
from espnet_ee.decode.formats import FORMATS, ONE_BY_ONE
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import atomic_write, is_file, read_lines
from espnet_ee.policy.budget import Budget, BudgetController, read_curve, schedule
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.registry import POLICIES
from espnet_ee.policy.searching import HOTWORD_BOOST, read_hotwords
from espnet_ee.policy.table import escape

if TYPE_CHECKING:
    import numpy as np

    from espnet_ee.api import EarlyExitASR
    from espnet_ee.data.recording import Recording
    from espnet_ee.decode.transcript import Recognised, Transcript

STDIN = "-"
EXITS = "exits.csv"  # beside a scored model


def add_transcribe(parser: Parser) -> None:
    """Options of ``espnet-ee transcribe``."""
    parser.description = (
        "Transcribes recordings of any length, of any format that libsndfile reads, any sampling rate and channels. Prints the\n"
        "text; of several, name and text with a tab between them (in a name tab, line ends and backslash are written \\t, \\n,\n"
        "\\r and \\\\). A recording that cannot be read is named, the others are done, and the exit status is 1."
    )
    parser.add_argument(
        "audio", nargs="*", metavar="AUDIO",
        help="audio file; folder of audio files; list of them (.scp, or a path a line in .txt, .lst, .list); - for standard input",
    )  # fmt: skip
    parser.option(
        "--model", "folder of a package, an experiment (exp/asr_...) or an export, or a name on the hub", required=True
    )
    thresholds = ", ".join(name for name in POLICIES if name != FixedExitPolicy.name)
    parser.option(
        "--policy",
        "when to stop: the name of a calibrated configuration of the model; a decoding configuration's file, which holds a\n"
        f"policy's settings ({thresholds}: none without); or {FixedExitPolicy.name}, the last exit\n"
        "(default: the model's default configuration, else the last exit)",
        metavar="NAME|FILE",
    )
    parser.option(
        "--budget",
        "million MACs per second of audio that are kept on average, in place of --policy: the policy of each batch is chosen\n"
        "for it (of those calibrated and the fixed exits, by the exits.csv in the model's folder)",
        type=float,
        metavar="MMACS",
    )
    _add_hotwords(parser)
    parser.option(
        "--format",
        "text; json: an object a line (file, text, exit_layer, seconds, macs, policy, words); ctm: a word a line (recording, 1,\n"
        "start, duration, word, confidence); srt, vtt: subtitles",
        choices=tuple(FORMATS),
        default="text",
    )
    parser.option("--json", "the same as --format json", action="store_const", const="json", dest="format")
    parser.path("--out", "writes a file for each recording there, NAME.txt, .json, .ctm, .srt or .vtt, and prints nothing")
    parser.option(
        "--max_segment_seconds",
        "longer recordings are cut where it is quietest, into pieces of at most so many seconds, each recognised on its own",
        type=float,
        default=20.0,
        metavar="S",
    )
    parser.option(
        "--engine",
        "what computes: torch, or onnx (ONNX Runtime: the model's onnx folder, which espnet-ee export makes); default: torch\n"
        "where it is installed and the model has its tensors",
        choices=("torch", "onnx"),
    )
    parser.option(
        "--int8", "the exported graphs with 8-bit weights (default: only where there are no others)", action="store_true"
    )
    parser.option("--batch_size", "recordings, or pieces of them, recognised together", type=int, metavar="N")
    parser.option("--num_threads", "CPU threads", type=int, metavar="N")
    parser.option("--device", "torch device", default="cpu")
    add_live(parser)
    parser.set_defaults(run=_transcribe)


def _add_hotwords(parser: Parser) -> None:
    parser.option(
        "--hotwords",
        "words to prefer, with commas between them, or a file of a word a line (and its boost after a tab, if it has its own)",
        metavar="WORDS|FILE",
    )
    parser.option(
        "--hotword_boost",
        f"what each adds to the score (natural logarithm) of a text that says it (default: {HOTWORD_BOOST:g})",
        type=float,
        metavar="X",
    )


class Problems:
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

    def say(self, note: str) -> None:
        self._print(f"note: {note}")

    def _print(self, line: str) -> None:
        print(f"espnet-ee: {' '.join(line.split())}", file=sys.stderr, flush=True)


def _transcribe(options: argparse.Namespace) -> None:
    numbers = {"batch_size": options.batch_size, "num_threads": options.num_threads}
    DecodingConfig().changed(**numbers)  # what is wrong is said before a model is loaded for seconds
    if not options.max_segment_seconds >= 1:
        raise UsageError(f"--max_segment_seconds {options.max_segment_seconds:g}: give 1 or more")
    check_live(options)
    budget, hotwords, problems = _budget(options), _hotwords(options), Problems()
    if options.live:
        return transcribe_live(options, _recogniser(options, hotwords))
    with contextlib.ExitStack() as stack:
        files = list(_files(options.audio, problems, stack))
        _check_output(options, files)
        if not any(is_file(file.path) for file in files):  # so is this
            for file in files:
                problems.fail(UserError(f"{file.path}: no such audio file; check the path"))
            raise SystemExit(1)
        recogniser = _recogniser(options, hotwords)
        controller = None if budget is None else _controller(options, budget, recogniser, problems)
        for transcript in _transcripts(files, options.max_segment_seconds, recogniser, controller, problems):
            _write(options, transcript, len(files) > 1)
    if problems.count:
        raise SystemExit(1)


def _files(words: Sequence[str], problems: Problems, stack: contextlib.ExitStack) -> Iterator[AudioFile]:
    for word in words:
        if word == STDIN:
            yield AudioFile(STDIN, _standard_input(stack))
            continue
        try:
            yield from audio_files(word)
        except UserError as error:
            problems.fail(error)


def _standard_input(stack: contextlib.ExitStack) -> Path:
    """A file of what comes in: libsndfile seeks in it, and an hour of it need not fit into memory."""
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="espnet-ee-"))) / "standard input"
    with open(path, "wb") as stream:
        shutil.copyfileobj(sys.stdin.buffer, stream)
    return path


def _check_output(options: argparse.Namespace, files: Sequence[AudioFile]) -> None:
    if options.out is None:
        if options.format in ONE_BY_ONE and len(files) > 1:
            raise UsageError(f"--format {options.format}: of several recordings, name a folder for them: --out DIR")
        return
    before: dict[str, AudioFile] = {}
    for file in files:
        if before.setdefault(file.stem, file) != file:
            raise UsageError(
                f"--out: {before[file.stem].name} and {file.name} would become one file; transcribe them into two folders, "
                "or give them ids by a list (.scp)"
            )


def _recogniser(options: argparse.Namespace, hotwords: dict[str, float]) -> EarlyExitASR:
    with quiet():
        from espnet_ee.api import EarlyExitASR  # ESPnet takes seconds to import

        int8 = options.int8 or None
        recogniser = EarlyExitASR.from_pretrained(options.model, options.policy, options.device, options.engine, int8, hotwords)
    numbers = {"batch_size": options.batch_size, "num_threads": options.num_threads}
    name = recogniser.policy_name
    recogniser.use(recogniser.config.changed(**numbers))
    recogniser.policy_name = name
    if options.num_threads is not None:
        recogniser.session.use_threads(options.num_threads)
    return recogniser


def _transcripts(
    files: Sequence[AudioFile],
    longest: float,
    recogniser: EarlyExitASR,
    controller: BudgetController | None,
    problems: Problems,
) -> Iterator[Transcript]:
    from espnet_ee.data.recording import open_recording
    from espnet_ee.decode.transcript import Transcriber

    def opened(file: AudioFile) -> Recording:
        recording = open_recording(file.path, recogniser.sample_rate, longest)
        problems.note(file.name, recording.note)
        return recording

    size = recogniser.config.batch_size
    recognise = _recognising(recogniser, controller)
    return Transcriber(opened, recognise, recogniser.sample_rate, size, lambda _, error: problems.fail(error))(files)


def _recognising(
    recogniser: EarlyExitASR, controller: BudgetController | None
) -> Callable[[Sequence[np.ndarray]], list[Recognised]]:
    def recognise(batch: Sequence[np.ndarray]) -> list[Recognised]:
        name = recogniser.policy_name
        if controller:
            point = controller.next_point()
            name = point.name
            recogniser.use(replace(recogniser.config, policy=point.policy))
        results = recogniser.recognise(batch)
        for samples, recognition in zip(batch, results, strict=True):
            if controller:
                controller.spend(len(samples) / recogniser.sample_rate, recognition.macs)
        return [(recognition, name) for recognition in results]

    return recognise


def _write(options: argparse.Namespace, transcript: Transcript, several: bool) -> None:
    content = FORMATS[options.format](transcript)
    if options.out is not None:
        suffix = "txt" if options.format == "text" else options.format
        with atomic_write(options.out / f"{transcript.audio.stem}.{suffix}") as stream:
            stream.write(content)
        return
    name = f"{escape(transcript.audio.name)}\t" if several and options.format == "text" else ""
    print(f"{name}{content}", end="", flush=True)


def _hotwords(options: argparse.Namespace) -> dict[str, float]:
    """The words of ``--hotwords`` with their boosts."""
    if options.hotwords is None:
        if options.hotword_boost is not None:
            raise UsageError("--hotword_boost: is of --hotwords; name them")
        return {}
    boost = HOTWORD_BOOST if options.hotword_boost is None else options.hotword_boost
    listed = is_file(options.hotwords)
    where, lines = (
        (f"{options.hotwords}: ", read_lines(options.hotwords)) if listed else ("--hotwords: ", options.hotwords.split(","))
    )
    table: dict[str, float] = {}
    for line in filter(str.strip, lines):
        word, _, own = line.partition("\t")
        try:
            table[word] = float(own) if own.strip() else boost
        except ValueError:
            raise UserError(f"{where}{own!r} is no boost; write WORD, a tab and a number") from None
    try:
        if not table:
            raise UserError("search: there is no hotword; give words with commas between them, or a file of a word a line")
        return dict(read_hotwords(table))
    except UserError as error:
        raise (UserError if listed else UsageError)(f"{where}{error}") from None


def _budget(options: argparse.Namespace) -> Budget | None:
    if options.budget is None:
        return None
    if options.policy is not None:
        raise UsageError("--budget chooses the policies; leave --policy out")
    if not Path(options.model).is_dir():
        raise UserError(
            f"{options.model}: no such folder; --budget reads the {EXITS} in it (download a model of the hub first)"
        )
    if not (Path(options.model) / EXITS).is_file():
        raise UserError(
            f"{options.model}: has no {EXITS}, which says what the model's exits and policies cost; leave --budget out"
        )
    return schedule([(0.0, options.budget * 1e6)])


def _controller(options: argparse.Namespace, budget: Budget, recogniser: EarlyExitASR, problems: Problems) -> BudgetController:
    """What keeps the budget; one that no point of the model keeps is said."""
    session = recogniser.session
    rate = None if session.frame_seconds is None else session.macs.stride / session.frame_seconds
    controller = BudgetController(read_curve(Path(options.model) / EXITS, recogniser.configs, session.macs, rate), budget)
    ends = {"even the cheapest": controller.curve[0], "the dearest": controller.curve[-1]}
    low, high = (point.macs_per_second for point in ends.values())
    if not low <= options.budget * 1e6 <= high:
        kind, point = list(ends.items())[options.budget * 1e6 > high]
        costs = f"takes {point.macs_per_second / 1e6:.3g} million MACs per second of audio"
        problems.say(f"--budget {options.budget:g}: {kind} point of the model, {point.name}, {costs}; it is taken throughout")
    return controller


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what ESPnet and its libraries print and warn of while they are imported: stdout is for texts, stderr for problems."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
