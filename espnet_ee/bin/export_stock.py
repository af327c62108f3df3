"""Writes one exit of an early-exit model as a plain ESPnet model, which anybody can use without this package.

Example:
    python -m espnet_ee.bin.export_stock --asr_train_config exp/asr/config.yaml --asr_model_file exp/asr/valid.loss.ave.pth \\
        --exit_layer 6 --output_dir exp/asr_exit06
    python -m espnet2.bin.asr_inference --asr_train_config exp/asr_exit06/config.yaml \\
        --asr_model_file exp/asr_exit06/model.pth --ctc_weight 1.0 ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from espnet_ee.errors import run


def main() -> None:
    """Parses and exports."""
    parser = argparse.ArgumentParser(
        prog="export_stock", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--asr_train_config", type=Path, required=True, help="the training's config.yaml")
    parser.add_argument("--asr_model_file", type=Path, required=True, help="the parameters, *.pth")
    parser.add_argument("--exit_layer", type=int, required=True, help="the exit: blocks of the exported model")
    parser.add_argument("--output_dir", type=Path, required=True, help="new, or an earlier export, which is replaced")
    arguments = parser.parse_args()
    from espnet_ee.store.export_stock import export_stock  # after the cheap checks: ESPnet takes seconds to import

    folder = export_stock(arguments.asr_train_config, arguments.asr_model_file, arguments.exit_layer, arguments.output_dir)
    print(f"{folder}: config.yaml and model.pth, a stock model of {arguments.exit_layer} blocks")


if __name__ == "__main__":
    run(main)
