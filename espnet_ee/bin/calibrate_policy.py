"""Calibrates exit policies on a development set, measures them on others, writes their decoding configurations.

Reads evidence tables (of --all_exits true, or of the import format that espnet_ee/score/imported.py describes) and
writes, into --output_dir, decode_POLICY_TARGET.yaml for every policy and target, POLICIES.md, policies.csv and
policies.png.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.errors import UsageError, run
from espnet_ee.files import atomic_write
from espnet_ee.policy.features import FEATURES
from espnet_ee.score.calibrate import parse_target
from espnet_ee.score.fit import DEFAULT_FEATURES
from espnet_ee.score.grid import read_grid
from espnet_ee.score.study import Study, make_study, refuse_same_table
from espnet_ee.score.study_curve import draw_study
from espnet_ee.score.study_report import CALIBRATED, decode_config, policy_file, write_csv, write_report

TARGETS = "wer_loss=1 wer_loss=5 wer_loss=10 mean_layer=6"


def get_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dev_evidence", type=Path, required=True, help="evidence table to calibrate on")
    parser.add_argument("--dev_text", type=Path, help="its references (not for an imported table)")
    parser.add_argument("--test_evidence", type=Path, nargs="*", default=[], help="evidence tables to measure on")
    parser.add_argument("--test_text", type=Path, nargs="*", default=[], help="their references, in the same order")
    parser.add_argument("--policies", default="entropy confidence patience learned", help="separated by spaces")
    parser.add_argument("--targets", default=TARGETS, help=f"separated by spaces (default: {TARGETS})")
    known, default = " ".join(FEATURES), " ".join(DEFAULT_FEATURES)
    parser.add_argument("--features", default=default, help=f"what the learned policy reads, of: {known} (default: {default})")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--allow_same", choices=("true", "false"), default="false", help="true: report on the dev table")
    parser.add_argument("--command", default="", help="command line to report (default: this one)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, calibrates, measures, writes."""
    options = get_parser().parse_args(arguments)
    texts = options.test_text or [None] * len(options.test_evidence)
    if len(texts) != len(options.test_evidence):
        raise UsageError("--test_text: give one file for each of --test_evidence, or none")
    targets = list(dict.fromkeys(parse_target(word) for word in options.targets.split()))
    names, features = (list(dict.fromkeys(words.split())) for words in (options.policies, options.features))
    if not targets or not names or not features:
        raise UsageError("--policies, --targets and --features: name at least one of each")
    refuse_same_table(options.dev_evidence, options.test_evidence, options.allow_same == "true")
    dev = read_grid(options.dev_evidence, options.dev_text)
    if len(dev.layers) == 1:
        # A baseline runs through the same stages.
        print(f"{options.dev_evidence}: the model has one exit only ({dev.layers[0]}); there is nothing to choose")
        return
    tests = [read_grid(path, text) for path, text in zip(options.test_evidence, texts, strict=True)]
    study = make_study(dev, tests, names, targets, features)
    given = sys.argv[1:] if arguments is None else arguments
    command = options.command or shlex.join(["python3", "-m", "espnet_ee.bin.calibrate_policy", *given])
    write(options.output_dir, study, command)


def write(folder: Path, study: Study, command: str) -> None:
    """Writes the study's files and says where the calibrated policies stand."""
    if study.sets:  # drawn first: without the package that draws nothing is written
        draw_study(folder / "policies.png", study.sets[0])
    remove_others(folder, {policy_file(one.policy, one.target.tag) for one in study.chosen})
    for one in study.chosen:
        with atomic_write(folder / policy_file(one.policy, one.target.tag)) as stream:
            stream.write(decode_config(one, study.dev.name))
        said = "" if one.reached else "NOT REACHED, the nearest is: "
        print(
            f"{one.policy.name}, {one.target}: {said}{one.expected.wer:.2f} % WER at mean exit layer {one.expected.depth:.2f}"
        )
    if study.sets:
        write_csv(folder / "policies.csv", study)
        write_report(folder / "POLICIES.md", study, "policies.png", command)


def remove_others(folder: Path, kept: set[str]) -> None:
    """Removes what an earlier calibration wrote: it may be of another model, and would be packed with this one."""
    for path in folder.glob("decode_*.yaml"):
        if path.name not in kept and path.read_text(encoding="utf-8").startswith(CALIBRATED):
            path.unlink()


if __name__ == "__main__":
    run(main)
