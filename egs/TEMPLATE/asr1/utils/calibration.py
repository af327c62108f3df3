"""Refuses what stage 12 would refuse. Called by asr_ee.sh before the first stage: ``calibration.py --policies ... --targets ... --online ...``."""

from __future__ import annotations

import sys

from espnet_ee.cli.decode import add_online, make_calibration
from espnet_ee.cli.parser import Parser
from espnet_ee.cli.score import add_calibration
from espnet_ee.errors import run


def main() -> None:
    parser = Parser()
    add_calibration(parser)
    add_online(parser)
    parser.set_defaults(calibrate_on="dev")
    make_calibration(parser.parse_args())


if __name__ == "__main__":
    sys.argv[0] = "asr_ee.sh"
    run(main)
