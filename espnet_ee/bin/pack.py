"""Packs a trained model with its policies and a generated model card: one folder.

Example:
    python -m espnet_ee.bin.pack --asr_train_config exp/asr/config.yaml --asr_model_file exp/asr/valid.loss.ave.pth \\
        --outpath exp/asr/package --policies conf/decode_entropy.yaml --exits_csv exp/asr/exits.csv \\
        --name owner/an4_ee_conformer --licence cc-by-4.0 --training_data "CMU AN4"
    hf upload owner/an4_ee_conformer exp/asr/package     # shares it: pip install huggingface_hub
"""

from __future__ import annotations

import argparse
from pathlib import Path

from espnet_ee.errors import UsageError, run


def main() -> None:
    """Parses and packs."""
    parser = argparse.ArgumentParser(prog="pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asr_train_config", type=Path, required=True, help="the training's config.yaml")
    parser.add_argument("--asr_model_file", type=Path, required=True, help="the parameters, *.pth")
    parser.add_argument("--outpath", type=Path, required=True, help="new folder, or earlier package")
    parser.add_argument(
        "--policies", type=Path, nargs="*", default=[], help="decoding configurations; the first is the default"
    )
    parser.add_argument("--exits_csv", type=Path, help="scores of stage 13, for the model card")
    parser.add_argument("--name", required=True, help="the model's name, owner/model on the hub")
    parser.add_argument("--licence", required=True, help="as the hub names it: apache-2.0, cc-by-4.0, other, ...")
    parser.add_argument("--training_data", required=True, help="what the model was trained on, one line")
    parser.add_argument("--language", default="", help="its code, such as en")
    parser.add_argument("--command", default="", help="the command line that trained it")
    arguments = parser.parse_args()
    if arguments.name.split() != [arguments.name]:
        raise UsageError(f"--name {arguments.name!r}: give one word, OWNER/MODEL on the hub")
    from espnet_ee.store.model_card import Card  # after the cheap checks: ESPnet takes seconds to import
    from espnet_ee.store.package import pack_model

    card = Card(arguments.name, arguments.licence, arguments.training_data, arguments.language, arguments.command)
    made = pack_model(
        arguments.asr_train_config,
        arguments.asr_model_file,
        arguments.outpath,
        card,
        arguments.policies,
        arguments.exits_csv,
    )
    print(f"{made}: packed; to share it: hf upload {arguments.name} {made}")


if __name__ == "__main__":
    run(main)
