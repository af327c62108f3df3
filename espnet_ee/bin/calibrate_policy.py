"""Calibrates exit policies on a development set: a decoding configuration for every policy and target.

Reads an evidence table (of --all_exits true, or of the import format that espnet_ee/score/imported.py describes) and writes
decode_POLICY_TARGET.yaml and promises.csv into --output_dir.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.errors import UsageError, run
from espnet_ee.policy.features import FEATURES
from espnet_ee.score.calibrate import calibrate_policies, parse_target, write_calibrated
from espnet_ee.score.fit import DEFAULT_FEATURES
from espnet_ee.score.grid import read_grid

TARGETS = "wer_loss=1 wer_loss=5 wer_loss=10 mean_layer=6"


def get_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dev_evidence", type=Path, required=True, help="evidence table to calibrate on")
    parser.add_argument("--dev_text", type=Path, help="its references (not for an imported table)")
    parser.add_argument("--policies", default="entropy confidence patience learned", help="separated by spaces")
    parser.add_argument("--targets", default=TARGETS, help=f"separated by spaces (default: {TARGETS})")
    known, default = " ".join(FEATURES), " ".join(DEFAULT_FEATURES)
    parser.add_argument("--features", default=default, help=f"what the learned policy reads, of: {known} (default: {default})")
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, calibrates, writes."""
    options = get_parser().parse_args(arguments)
    targets = list(dict.fromkeys(parse_target(word) for word in options.targets.split()))
    names, features = (list(dict.fromkeys(words.split())) for words in (options.policies, options.features))
    if not targets or not names or not features:
        raise UsageError("--policies, --targets and --features: name at least one of each")
    dev = read_grid(options.dev_evidence, options.dev_text, keep=True)
    calibrated = calibrate_policies(dev, names, targets, features)
    if not calibrated:
        # A baseline runs through the same stages.
        print(f"{options.dev_evidence}: the model has one exit only ({dev.layers[0]}); there is nothing to choose")
        return
    write_calibrated(options.output_dir, calibrated, dev.name)
    print(*calibrated, sep="\n")


if __name__ == "__main__":
    run(main)
