"""What works on evidence and decodings, without torch and ESPnet: ``calibrate``, ``score``, ``replay``, ``compare``, ``compare-models``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.cli.parser import Parser, refuse_input
from espnet_ee.cli.reports import write_text
from espnet_ee.errors import UsageError
from espnet_ee.files import refuse_other_folder
from espnet_ee.policy.features import FEATURES
from espnet_ee.policy.registry import POLICIES
from espnet_ee.score.calibrate import DEFAULT_POLICIES, DEFAULT_TARGETS
from espnet_ee.score.fit import DEFAULT_FEATURES

EVIDENCE = "evidence table: of `espnet-ee decode --every_exit`, or imported (see espnet_ee/score/imported.py)"
TEXT = "its references, a Kaldi text file (not for an imported table)"


def add_calibration(parser: Parser) -> None:
    """The options of what is calibrated, of ``calibrate`` and of ``decode``; see :func:`calibration_of`."""
    known, names = ", ".join(POLICIES), " ".join(DEFAULT_POLICIES)
    parser.option("--policies", f"of {known} (default: {names})", nargs="*", metavar="NAME")
    kinds = "wer_loss=P (at most P %% relative WER above the final exit; P@90: for new utterances, with 90 %% confidence), mean_layer=L, macs_per_second=M"
    targets = f"what to meet on the development set: {kinds} (default: {' '.join(DEFAULT_TARGETS)})"
    parser.option("--targets", targets, nargs="*", metavar="KIND=NUMBER")
    words = f"what `learned` reads, of {', '.join(FEATURES)} (default: {' '.join(DEFAULT_FEATURES)})"
    parser.option("--features", words, nargs="*", metavar="NAME")


def calibration_of(options: argparse.Namespace) -> tuple[list[str], list[str], list[str]]:
    """Policies, targets and features of a command line, each once. A list without a word in it is taken as it is.

    Raises:
        UsageError: there is no such policy or feature.
    """
    lists = ((options.policies, DEFAULT_POLICIES), (options.targets, DEFAULT_TARGETS), (options.features, DEFAULT_FEATURES))
    policies, targets, features = (list(dict.fromkeys(default if words is None else words)) for words, default in lists)
    for option, words, known in (("--policies", policies, POLICIES), ("--features", features, FEATURES)):
        for word in words:
            if word not in known:
                raise UsageError(f"{option} {word}: is none of {', '.join(known)}")
    return policies, targets, features


def add_calibrate(parser: Parser) -> None:
    """Options of ``espnet-ee calibrate``."""
    parser.description = "Finds the thresholds that meet targets on a development set; writes OUT/decode_POLICY_TARGET.yaml."
    parser.path("--evidence", f"{EVIDENCE} of the development set", "FILE", required=True)
    parser.path("--text", TEXT, "FILE")
    parser.path("--out", "folder for the decoding configurations; those of an earlier calibration go", required=True)
    add_calibration(parser)
    parser.set_defaults(run=_calibrate)


def _calibrate(options: argparse.Namespace) -> None:
    from espnet_ee.policy.decoding import DecodingConfig
    from espnet_ee.policy.searching import SearchConfig
    from espnet_ee.score.calibrate import PROMISES, calibrate_policies, parse_target, write_calibrated
    from espnet_ee.score.grid import read_grid
    from espnet_ee.score.runs import search_of

    names, words, features = calibration_of(options)
    if not (names and words and features):
        raise UsageError("--policies, --targets and --features: name at least one of each")
    targets = [parse_target(word) for word in words]
    refuse_other_folder(options.out, (PROMISES,))  # of a package, say, it would change the default
    dev = read_grid(options.evidence, options.text, keep=True)
    if options.targets is None:  # they are for models of twelve blocks
        targets = [target for target in targets if not target.beyond(dev)]
    calibrated = calibrate_policies(dev, names, targets, features)
    if not calibrated:
        print(f"{options.evidence}: the model has one exit only; there is nothing to choose")
        return
    common = DecodingConfig(search=search_of(options.evidence) or SearchConfig())
    write_calibrated(options.out, calibrated, dev.name, common)
    print(*calibrated, sep="\n")


def add_score(parser: Parser) -> None:
    """Options of ``espnet-ee score``."""
    parser.description = "Scores an experiment's decodings: EXP/RESULTS.md, exits.csv, curve.png and report.html."
    parser.path("--exp", "experiment folder with decode_every_exit/SET; the results go into it", required=True)
    parser.path("--data_root", "folder with SET/text for every set, e.g. dump/raw", required=True)
    parser.option("--valid_set", "the set that the policies were calibrated on", required=True, metavar="SET")
    parser.option("--test_sets", "sets to score", required=True, nargs="+", metavar="SET")
    parser.path("--separate", "scored experiments of separately trained depths, as a reference", nargs="+", default=[])
    parser.option("--command", "command line to report (default: this one)")
    parser.option("--note", "lines for the page", nargs="+", default=[], metavar="LINE")
    parser.option("--date", "date to report (default: none, so that a rerun gives the same bytes)", default="")
    parser.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    if len(set(options.test_sets)) < len(options.test_sets):
        raise UsageError("--test_sets: name each set once")
    from espnet_ee.score.experiment import ScoreOptions, score_experiment
    from espnet_ee.score.page import set_table

    page = score_experiment(
        ScoreOptions(
            exp=options.exp,
            data_root=options.data_root,
            valid_set=options.valid_set,
            test_sets=options.test_sets,
            separate=options.separate,
            command=options.command or shlex.join(["espnet-ee", *sys.argv[1:]]),
            notes=options.note,
            date=options.date,
        )
    )
    for result in page.sets:
        print(*set_table(result, page.valid_set), sep="\n")


def add_replay(parser: Parser) -> None:
    """Options of ``espnet-ee replay``."""
    parser.description = (
        "Replays exit policies at any thresholds on an evidence table: nothing is decoded again. Prints, with tabs between\n"
        "them: policy, threshold, WER in per cent, errors, words, mean exit layer, MACs per second of audio, real-time factor."
    )
    parser.path("--evidence", EVIDENCE, "FILE", required=True)
    parser.path("--text", TEXT, "FILE")
    known = ", ".join(POLICIES)
    parser.option("--policy", f"of {known}, perhaps with thresholds", nargs="+", default=[], metavar="NAME[=T,T]")
    parser.option("--config", "decoding configurations, for policies with more settings", nargs="+", default=[],
                  metavar="YAML[=T,T]")  # fmt: skip
    parser.option("--thresholds", "thresholds of a policy that came without", type=int, default=20, metavar="N")
    parser.path("--out", "file to write (default: print)", "FILE")
    parser.set_defaults(run=_replay)


def _replay(options: argparse.Namespace) -> None:
    from espnet_ee.score.grid import read_grid
    from espnet_ee.score.replay import replay_table

    refuse_input(options.out, [options.evidence, options.text])
    grid = read_grid(options.evidence, options.text)
    write_text(options.out, replay_table(grid, options.policy, options.config, options.thresholds))


def add_compare(parser: Parser) -> None:
    """Options of ``espnet-ee compare``."""
    parser.description = "Compares two decodings of the same sets exit by exit, with paired bootstrap intervals (Markdown)."
    parser.path("--evidence", "evidence tables, one a set", "FILE", required=True, nargs="+")
    parser.path("--other", "those of the other decoding, same order", "FILE", required=True, nargs="+")
    parser.path("--text", "the sets' references, same order (not for imported tables)", "FILE", nargs="+")
    parser.option("--names", "what the two are called", nargs=2, default=["first", "second"], metavar="NAME")
    parser.option("--title", "of the page", default="Two decodings, exit by exit")
    parser.option("--note", "lines under the title", nargs="+", default=[], metavar="LINE")
    parser.path("--out", "file to write (default: print)", "FILE")
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    from espnet_ee.score.compare import comparison_page
    from espnet_ee.score.grid import read_grid

    refuse_input(options.out, [*options.evidence, *options.other, *(options.text or [])])
    texts: Sequence[Path | None] = options.text or [None] * len(options.evidence)
    if not len(options.evidence) == len(options.other) == len(texts):
        raise UsageError("--evidence, --other and --text: give the same number of files for each")
    files = zip(options.evidence, options.other, texts, strict=True)
    pairs = [(read_grid(first, text), read_grid(second, text)) for first, second, text in files]
    write_text(options.out, comparison_page(pairs, tuple(options.names), options.title, options.note))


def add_compare_models(parser: Parser) -> None:
    """Options of ``espnet-ee compare-models``."""
    parser.description = (
        "Sets models side by side, exit by exit, with their policies: OUT/COMPARISON.md and comparison.png, from scored\n"
        "experiments (exits.csv). A model that has not been scored is left out, and the page says so."
    )
    words = "the columns: a scored experiment, or several that have one exit each"
    parser.option("--models", words, nargs="+", required=True, metavar="NAME=EXP[,EXP]")
    parser.path("--out", "folder for the page and the picture", required=True)
    parser.option("--sets", "sets to show (default: all that were scored)", nargs="+", default=[], metavar="SET")
    parser.option("--missing", "lines for what else is left out, and why", nargs="+", default=[], metavar="LINE")
    parser.option("--title", "of the page", default="Models, exit by exit")
    parser.option("--note", "lines under the title", nargs="+", default=[], metavar="LINE")
    parser.option("--command", "command line to report (default: this one)")
    parser.set_defaults(run=_compare_models)


def _compare_models(options: argparse.Namespace) -> None:
    from espnet_ee.score.models import compare_models, set_lines, write_comparison

    command = options.command or shlex.join(["espnet-ee", *sys.argv[1:]])
    comparison = compare_models(options.models, options.sets, options.missing, options.title, command, options.note)
    write_comparison(options.out, comparison)
    for line in comparison.left_out:
        print(f"warning: left out: {line}", file=sys.stderr)
    for name in comparison.sets:
        print(*set_lines(comparison.models, name), "", sep="\n")
