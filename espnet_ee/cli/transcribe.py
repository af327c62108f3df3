"""``espnet-ee transcribe``: audio files to text, each at the exit that its policy chooses."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_ee.cli.live import add_live, check_live, transcribe_live
from espnet_ee.cli.outputs import Outputs, identity_of
from espnet_ee.cli.parser import Parser, add_model, not_empty
from espnet_ee.cli.recogniser import EXITS, build_worker, open_controller, open_recogniser, recognising
from espnet_ee.cli.reports import Problems, Progress
from espnet_ee.cli.workers import Workers
from espnet_ee.data.audio_files import AudioFile, audio_files
from espnet_ee.data.recording import CUTS, Recording, open_recording
from espnet_ee.decode.formats import FORMATS, ONE_BY_ONE
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import is_file, read_lines
from espnet_ee.policy.budget import Budget, BudgetController, schedule
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.registry import POLICIES
from espnet_ee.policy.searching import HOTWORD_BOOST, read_hotwords

if TYPE_CHECKING:
    from espnet_ee.api import EarlyExitASR

STDIN = "-"
_LONGEST = 255  # bytes of a file's name


def add_transcribe(parser: Parser) -> None:
    """Options of ``espnet-ee transcribe``."""
    parser.description = (
        "Transcribes recordings of any length, of any format that libsndfile reads, any sampling rate and channels. Prints the\n"
        "text; of several, name and text with a tab between them (in a name tab, line ends and backslash are written \\t, \\n,\n"
        "\\r and \\\\). A recording that cannot be read is named, the others are done, and the exit status is 1."
    )
    parser.add_argument(
        "audio", nargs="*", metavar="AUDIO", type=not_empty,
        help="audio file; folder of audio files; list of them (.scp, or a path a line in .txt, .lst, .list); - for standard input",
    )  # fmt: skip
    add_model(parser)
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
    parser.path(
        "--out",
        "writes a file for each recording there, NAME.txt, .json, .ctm, .srt or .vtt, and prints nothing; interrupted and run\n"
        "again it goes on where it was, and what is there of the same audio, model and settings stays",
    )
    parser.option(
        "--max_segment_seconds",
        "longer recordings are cut in their pauses, into pieces of at most so many seconds, each recognised on its own",
        type=float,
        default=20.0,
        metavar="S",
    )
    parser.option(
        "--cut",
        "what tells pauses: energy (loudness), or vad (voice activity detection, extra vad), also where it is noisy",
        choices=CUTS,
        default=CUTS[0],
    )
    _add_engine(parser)
    add_live(parser)
    parser.set_defaults(run=_transcribe)


def _add_engine(parser: Parser) -> None:
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
    parser.option("--num_threads", "CPU threads, of each process", type=int, metavar="N")
    parser.option("--nj", "processes that recognise, each with the model for itself; changes no result", type=int, default=1)
    parser.option("--device", "torch device", default="cpu")


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


def _transcribe(options: argparse.Namespace) -> None:
    numbers = {"batch_size": options.batch_size, "num_threads": options.num_threads}
    DecodingConfig().changed(**numbers)  # what is wrong is said before a model is loaded for seconds
    if not options.max_segment_seconds >= 1:
        raise UsageError(f"--max_segment_seconds {options.max_segment_seconds:g}: give 1 or more")
    if options.nj < 1 or (options.nj > 1 and options.budget is not None):
        why = "give 1 or more" if options.nj < 1 else "--budget chooses by what was spent before, one batch after the other"
        raise UsageError(f"--nj {options.nj}: {why}")
    check_live(options)
    budget, hotwords, problems = _budget(options), _hotwords(options), Problems()
    if options.live:
        return transcribe_live(options, open_recogniser(options, hotwords))
    with contextlib.ExitStack() as stack:
        files = list(_files(options.audio, problems, stack))
        _check_output(options, files)
        if not any(is_file(file.path) for file in files):  # said before a model is loaded, too
            for file in files:
                problems.fail(UserError(f"{file.path}: no such audio file; check the path"))
            raise SystemExit(1)
        recogniser = open_recogniser(options, hotwords)
        controller = None if budget is None else open_controller(options, budget, recogniser, problems)
        # It takes a reading of all parameters.
        identity = None if controller or options.out is None else identity_of(recogniser, options)
        outputs = Outputs(options, len(files) > 1, identity)
        left = outputs.left(list(dict.fromkeys(files)) if options.out or options.format == "ctm" else files)
        if len(left) < len(files):
            problems.say(f"{len(files) - len(left)} of {len(files)} transcripts are in {options.out} already, and stay")
        _transcribe_files(options, left, outputs, recogniser, controller, problems, hotwords, stack)
    if problems.count:
        raise SystemExit(1)


def _transcribe_files(
    options: argparse.Namespace,
    files: Sequence[AudioFile],
    outputs: Outputs,
    recogniser: EarlyExitASR,
    controller: BudgetController | None,
    problems: Problems,
    hotwords: dict[str, float],
    stack: contextlib.ExitStack,
) -> None:
    from espnet_ee.decode.transcript import Transcriber, when_asked

    def opened(file: AudioFile) -> Recording:
        recording = open_recording(file.path, recogniser.sample_rate, options.max_segment_seconds, options.cut)
        problems.note(file.name, recording.note)
        return recording

    problems.progress = progress = Progress(lambda: sum(map(_seconds, files)))
    submit, ahead = when_asked(recognising(recogniser, controller)), 0
    if options.nj > 1:
        submit = stack.enter_context(Workers(partial(build_worker, options, hotwords), options.nj)).submit
        ahead = 2 * options.nj
    size, rate = recogniser.config.batch_size, recogniser.sample_rate
    fail = partial(_fail, problems)
    transcriber = Transcriber(opened, submit, rate, size, fail, ahead, outputs.journal, progress.advance)
    for transcript in transcriber(files):
        outputs.write(transcript, progress)
    progress.clear()


def _fail(problems: Problems, audio: AudioFile, error: UserError) -> None:
    if audio.name == STDIN:
        error = UserError(str(error).replace(str(audio.path), "standard input"))
    problems.fail(error)


def _seconds(file: AudioFile) -> float:
    """By the header alone."""
    from espnet_ee.data.audio import count_samples

    try:
        count, rate = count_samples(file.path)
    except UserError:  # said when it is opened
        return 0.0
    return count / rate


def _files(words: Sequence[str], problems: Problems, stack: contextlib.ExitStack) -> Iterator[AudioFile]:
    if list(words).count(STDIN) > 1:
        raise UsageError("-: standard input is there once; name it once")
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
    try:
        with open(path, "wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
    except OSError as error:
        raise UserError(
            f"standard input: cannot be kept in {path.parent} ({error.strerror}); name another place by TMPDIR"
        ) from None
    return path


def _check_output(options: argparse.Namespace, files: Sequence[AudioFile]) -> None:
    if options.out is None:
        if options.format in ONE_BY_ONE and len(files) > 1:
            raise UsageError(f"--format {options.format}: of several recordings, name a folder for them: --out DIR")
        if options.format == "ctm":
            _refuse_one_name(files, "be one recording of the ctm; name a folder for them (--out DIR)")
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)  # before anything is computed
    except OSError as error:
        raise UserError(f"--out {options.out}: cannot be made a folder ({error.strerror}); give another") from None
    for file in files:
        if "/" in file.stem:
            raise UsageError(f"--out: {file.name} is to name a file, and holds a /; give it another id")
        if len(os.fsencode(file.stem)) + 5 > _LONGEST:
            raise UsageError(f"--out: {file.name} is too long for a file's name; give it an id by a list (.scp)")
    _refuse_one_name(files, "become one file of --out; transcribe them into two folders")


def _refuse_one_name(files: Sequence[AudioFile], what: str) -> None:
    before: dict[str, AudioFile] = {}
    for file in files:
        other = before.setdefault(file.stem, file)
        if other != file:
            raise UsageError(f"{other.name} and {file.name} would {what}, or give them ids by a list (.scp)")


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
        word = " ".join(word.split())
        try:
            value = float(own) if own.strip() else boost
        except ValueError:
            raise UserError(f"{where}{own!r} is no boost; write WORD, a tab and a number") from None
        if table.setdefault(word, value) != value:
            raise UserError(f"{where}{word!r} is there twice, with other boosts; delete one")
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
            f"{options.model}: has no {EXITS}, which says what the model's exits and policies cost; copy that of the scored "
            "experiment there, or leave --budget out"
        )
    return schedule([(0.0, options.budget * 1e6)])
