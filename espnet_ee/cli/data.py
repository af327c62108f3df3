"""``espnet-ee data``: corpora, data directories, features, tokens."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from espnet_ee.cli.parser import Parser, refuse_input
from espnet_ee.data.download import ARCHIVES, BASE_URL, download_parts
from espnet_ee.data.librispeech import parts_of
from espnet_ee.data.registry import CORPORA, open_corpus
from espnet_ee.policy.decoding import pairs

Run = Callable[[argparse.Namespace], None]


def add_data(parser: Parser) -> None:
    """Adds the commands of ``espnet-ee data``."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Run, text: str) -> Parser:
        command: Parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(run=run)
        return command

    _add_prepare(add("prepare", _prepare, "make the data directories of a corpus"))
    _add_validate(add("validate", _validate, "check a data directory; tell the file and line of the first thing wrong"))
    _add_sets(
        add("sets", _sets, "lay sets beside the training set: sound it has heard, characters it never saw, doubled blanks")
    )
    _add_speed(add("speed", _speed, "add faster and slower copies of every utterance"))
    _add_format(add("format", _format, "write the audio as 16-bit FLAC at one sampling rate"))
    _add_features(add("features", _features, "store the features that a model's frontend computes in Kaldi archives"))
    _add_filter(add("filter", _filter, "drop utterances too short, too long or without text (never of a set to be scored)"))
    _add_tokens(add("tokens", _tokens, "make the token list of a training, and for bpe the sentencepiece model"))
    _add_lm(add("lm", _lm, "make an n-gram language model of a model's tokens, which a beam search takes"))
    _add_units(
        add("units", _units, "warn, before a training, of texts longer than their frames and of units too rare to be learned")
    )
    _add_download(add("download", _download, "download parts of LibriSpeech; what is there is left alone"))
    _add_mini(add("mini", _mini, "make the mini corpus: synthetic sentences to try a recipe on, without any download"))


def _add_copy(parser: Parser) -> None:
    """The options of what makes one data directory of another."""
    parser.path("--data", "data directory to read", required=True)
    parser.path("--out", "data directory to make or replace", required=True)


def _add_jobs(parser: Parser) -> None:
    parser.option("--nj", "number of processes", type=int, default=1)


def _add_skipped(parser: Parser) -> None:
    parser.option("--max_skipped", "percentage of broken utterances to skip", type=float, default=0.0, metavar="PERCENT")


def _add_prepare(parser: Parser) -> None:
    parser.option("--corpus", "which corpus it is", required=True, choices=tuple(CORPORA))
    parser.path("--root", "folder of the corpus", required=True)
    parser.path("--out", "folder to make one data directory per set in", required=True)
    parser.option("--sets", "sets to make, e.g. train-clean-5 dev=dev-clean+dev-other (default: all)", nargs="+", default=[])
    parser.option("--corpus_options", "what only this corpus has", nargs="+", default=[], metavar="KEY=VALUE")
    _add_skipped(parser)
    parser.option("--skip_in", "the sets in which they may be skipped: never those to be scored", nargs="+", default=[])
    parser.path("--lm_text", "write the corpus' text for language models here", "FILE")


def _prepare(options: argparse.Namespace) -> None:
    from espnet_ee.data.prepare import prepare_set, write_lm_text
    from espnet_ee.data.skips import check_limit

    check_limit(options.max_skipped)
    corpus = open_corpus(options.corpus, options.root, options.sets, pairs(options.corpus_options, "--corpus_options"))
    for name in corpus.sets:
        limit = options.max_skipped if name in options.skip_in else 0
        print(prepare_set(corpus, name, options.out / name, limit).describe(options.out / name))
    if options.lm_text:
        print(f"{options.lm_text}: {write_lm_text(corpus, options.lm_text)} sentences")


def _add_validate(parser: Parser) -> None:
    parser.path("--data", "data directory to check", required=True)
    parser.option("--feats_type", "what it must hold (default: what it says itself)", choices=("raw", "extracted"))


def _validate(options: argparse.Namespace) -> None:
    from espnet_ee.data.datadir import validate_data_dir

    data = validate_data_dir(options.data, options.feats_type)
    print(f"{options.data}: {len(data.utt_ids)} utterances, {len(set(data.tables['utt2spk'].values()))} speakers")


def _add_sets(parser: Parser) -> None:
    parser.path("--train", "data directory of the training set", required=True)
    parser.path("--data", "data directories that are developed on or scored", required=True, nargs="+")


def _sets(options: argparse.Namespace) -> None:
    from espnet_ee.data.sets import compare_sets

    for line in compare_sets(options.train, options.data):
        print(line)


def _add_speed(parser: Parser) -> None:
    _add_copy(parser)
    parser.path("--audio_dir", "folder for the new audio, to make or replace", required=True)
    parser.option("--factors", "speeds; 1.0 is the recording (0.9 1.0 1.1)", nargs="+", default=["0.9", "1.0", "1.1"])
    _add_jobs(parser)
    _add_skipped(parser)


def _speed(options: argparse.Namespace) -> None:
    from espnet_ee.data.speed import check_factors, perturb_speed

    factors = check_factors(options.factors)
    made = perturb_speed(options.data, options.out, factors, options.audio_dir, options.nj, options.max_skipped)
    print(made.describe(options.out))


def _add_format(parser: Parser) -> None:
    _add_copy(parser)
    parser.option("--fs", "sampling rate in Hz", type=int, default=16000)
    _add_jobs(parser)
    _add_skipped(parser)


def _format(options: argparse.Namespace) -> None:
    from espnet_ee.data.format_audio import format_audio

    made = format_audio(options.data, options.out, options.fs, options.nj, options.max_skipped)
    print(made.describe(options.out))


def _add_features(parser: Parser) -> None:
    _add_copy(parser)
    parser.path(
        "--frontend_conf", "frontend: default or kaldi_fbank, and its options (default: ESPnet's default frontend)", "YAML"
    )
    parser.option("--compress", "8 bits a value as Kaldi does; not exact any more", action="store_true")
    _add_jobs(parser)
    _add_skipped(parser)


def _features(options: argparse.Namespace) -> None:
    from espnet_ee.data.features import extract_features

    made = extract_features(options.data, options.out, options.frontend_conf, options.nj, options.compress, options.max_skipped)
    print(made.describe(options.out))


def _add_filter(parser: Parser) -> None:
    _add_copy(parser)
    parser.option("--min_seconds", "shortest utterance kept", type=float, default=0.1)
    parser.option("--max_seconds", "longest utterance kept", type=float, default=30.0)
    parser.option("--fs", "sampling rate in Hz of utt2num_samples", type=int, default=16000)


def _filter(options: argparse.Namespace) -> None:
    from espnet_ee.data.length_filter import filter_lengths

    survivors = filter_lengths(options.data, options.out, options.min_seconds, options.max_seconds, options.fs)
    print(f"{options.out}: {survivors}")


def _add_tokens(parser: Parser) -> None:
    parser.path("--text", "Kaldi text files of the training data", "FILE", required=True, nargs="+")
    parser.path("--out", "folder for tokens.txt and bpe.model", required=True)
    parser.option("--token_type", "what a token is", required=True, choices=("char", "bpe"))
    parser.option("--nbpe", "number of tokens (needed for bpe)", type=int)
    parser.option("--model_type", "kind of pieces", choices=("bpe", "unigram"), default="bpe")


def _tokens(options: argparse.Namespace) -> None:
    from espnet_ee.data.tokens import make_tokens

    tokens = make_tokens(options.text, options.token_type, options.out, options.nbpe, options.model_type)
    print(f"{options.out / 'tokens.txt'}: {len(tokens)} tokens")


def _add_lm(parser: Parser) -> None:
    parser.path("--text", "Kaldi text files (an id and a sentence a line)", "FILE", required=True, nargs="+")
    parser.path("--tokens", "folder of the model's tokens.txt and bpe.model", required=True)
    parser.option("--token_type", "what a token is", required=True, choices=("char", "bpe"))
    parser.option("--order", "n (default: 5 of characters, 3 of pieces)", type=int, metavar="N")
    parser.option(
        "--tool", "what counts (default: lmplz where it is present, else kaldingram)", choices=("lmplz", "kaldingram")
    )
    parser.path("--out", "ARPA file to write", "FILE", required=True)


def _lm(options: argparse.Namespace) -> None:
    from espnet_ee.search.ngram_training import train_ngram

    refuse_input(options.out, [*options.text, options.tokens / "tokens.txt", options.tokens / "bpe.model"])
    made = train_ngram(options.text, options.tokens, options.token_type, options.out, options.order, options.tool)
    print(f"{options.out}: {made}")


def _add_units(parser: Parser) -> None:
    parser.path("--data", "data directory of the training set", required=True)
    parser.path("--tokens", "folder of tokens.txt and bpe.model", required=True)
    parser.option("--token_type", "what a token is", required=True, choices=("char", "bpe"))
    parser.path("--asr_config", "training configuration: its frontend (with fs) and encoder", "YAML", required=True)


def _units(options: argparse.Namespace) -> None:
    from espnet_ee.data.units import unit_warnings
    from espnet_ee.files import read_yaml

    config = read_yaml(options.asr_config, "give the training's configuration")
    for warning in unit_warnings(options.data, options.tokens, options.token_type, config):
        print(f"espnet-ee: warning: {warning}", file=sys.stderr)


def _add_download(parser: Parser) -> None:
    parser.path("--out", "folder to make LibriSpeech/PART in", required=True)
    parser.option("--parts", f"parts or sets of parts, of: {' '.join(ARCHIVES)}", required=True, nargs="+")
    parser.option("--hold_out", "as for `prepare`: dev and test are no parts", type=int, default=0)
    parser.option("--url", "the site or a mirror of it", default=BASE_URL)


def _download(options: argparse.Namespace) -> None:
    for folder in download_parts(parts_of(options.parts, options.hold_out), options.out, options.url):
        print(f"{folder}: there")


def _add_mini(parser: Parser) -> None:
    parser.path("--out", "folder to make MiniSpeech in", required=True)
    parser.option("--utterances_per_speaker", "of each training speaker; 2/7 of it for others", type=int, default=70)
    parser.option("--seed", "another seed is another corpus", type=int, default=0)
    _add_jobs(parser)


def _mini(options: argparse.Namespace) -> None:
    from espnet_ee.data.mini.make import make_corpus

    counts = make_corpus(options.out, options.nj, options.utterances_per_speaker, options.seed)
    for name, count in counts.items():
        print(f"{options.out / 'MiniSpeech' / name}: {count} utterances")
