"""``espnet-ee align``: when the words of known texts are said."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from espnet_ee.cli.parser import Parser, add_model, refuse_input
from espnet_ee.cli.recogniser import quiet
from espnet_ee.cli.reports import Problems, write_text
from espnet_ee.errors import UsageError, UserError

if TYPE_CHECKING:
    import numpy as np

    from espnet_ee.api import EarlyExitASR

    Utterance = tuple[str, str, np.ndarray]
    """Name, text, samples at the model's rate."""


def add_align(parser: Parser) -> None:
    """Options of ``espnet-ee align``."""
    parser.description = (
        "Says when the words of known texts are said: a CTM line a word (recording, 1, start, duration, word, confidence), by the\n"
        "most probable alignment of one exit, moved by the word_shift of the model's decoding configurations. An utterance that cannot be aligned is named, and the exit status is 1."
    )
    add_model(parser)
    parser.path("--data", "Kaldi data directory (wav.scp, text)")
    parser.path("--audio", "in place of it: an audio file of any format, rate and channels", "FILE")
    parser.option("--text", "with --audio: what is said in it", metavar="WORDS")
    parser.option(
        "--exit_layer",
        "the exit that aligns (default: word_exit of the decoding configurations, else the last)",
        type=int,
        metavar="K",
    )
    parser.option("--engine", "as of espnet-ee transcribe", choices=("torch", "onnx"))
    parser.option("--device", "torch device", default="cpu")
    parser.path("--out", "the CTM file (default: standard output)", "FILE")
    parser.set_defaults(run=_align)


def _align(options: argparse.Namespace) -> None:
    if (options.data is None) == (options.audio is None):
        raise UsageError("give either --data or --audio")
    if (options.audio is None) != (options.text is None):
        raise UsageError("--audio and --text belong together")
    from espnet_ee.data.datadir import TABLES

    tables = [options.data / name for name in TABLES] if options.data else []
    refuse_input(options.out, [options.audio, *tables])
    from espnet_ee.decode.alignment import Aligner
    from espnet_ee.decode.formats import ctm_lines

    with quiet():
        from espnet_ee.api import EarlyExitASR

        recogniser = EarlyExitASR.from_pretrained(options.model, "fixed", options.device, options.engine)
    config = recogniser.config
    layer = config.word_exit if options.exit_layer is None else options.exit_layer
    aligner, problems, lines = Aligner(recogniser.session, layer, config.word_shift), Problems(), []
    for name, text, samples in _utterances(options, recogniser, problems):
        try:
            lines.append(ctm_lines(name, aligner(samples, text)))
        except UserError as error:
            problems.fail(UserError(f"{name}: {error}"))
    write_text(options.out, "".join(lines))
    if problems.count:
        raise SystemExit(1)


def _utterances(options: argparse.Namespace, recogniser: EarlyExitASR, problems: Problems) -> Iterator[Utterance]:
    from espnet_ee.data.audio import read_any
    from espnet_ee.data.audio_files import AudioFile
    from espnet_ee.data.inputs import read_inputs
    from espnet_ee.kaldi import read_scp

    if options.audio is not None:
        samples, note = read_any(options.audio, recogniser.sample_rate)
        problems.note(str(options.audio), note)
        yield AudioFile(str(options.audio), options.audio).stem, options.text, samples
        return
    texts = read_scp(options.data / "text", allow_empty=True)
    for item in read_inputs(options.data, recogniser.sample_rate):
        try:
            if item.utt_id not in texts:
                raise UserError(f"not in {options.data / 'text'}; add or delete it")
            yield item.utt_id, texts[item.utt_id], item.load()
        except UserError as error:
            problems.fail(UserError(f"{item.utt_id}: {error}"))
