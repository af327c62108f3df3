"""What makes files for others of a trained model: ``export``, ``raw-audio``, ``pack``."""

from __future__ import annotations

import argparse

from espnet_ee.cli.parser import Parser
from espnet_ee.errors import UsageError

MODEL = "folder of an experiment (exp/asr_...)"


def _add_model(parser: Parser, text: str = MODEL) -> None:
    parser.path("--model", text, required=True)
    parser.path("--model_file", "its parameters (default: valid.loss.ave.pth)", "FILE")


def add_export(parser: Parser) -> None:
    """Options of ``espnet-ee export``."""
    parser.description = (
        "Writes one exit as a plain ESPnet model (config.yaml, model.pth), which anybody can use without this package."
    )
    parser.epilog = "espnet2.bin.asr_inference.Speech2Text('OUT/config.yaml', 'OUT/model.pth', ctc_weight=1.0) loads it."
    _add_model(parser, f"{MODEL} or package")
    parser.option("--exit_layer", "the exit: blocks of the exported model", type=int, required=True, metavar="K")
    parser.path("--out", "new, or an earlier export, which is replaced", required=True)
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    # Here and below only when it is needed: ESPnet takes seconds to import.
    from espnet_ee.store.checkpoint import experiment_files
    from espnet_ee.store.export_stock import export_stock

    train_config, model_file = experiment_files(options.model, options.model_file)
    folder = export_stock(train_config, model_file, options.exit_layer, options.out)
    print(f"{folder}: config.yaml and model.pth, a stock model of {options.exit_layer} blocks")


def add_raw_audio(parser: Parser) -> None:
    """Options of ``espnet-ee raw-audio``."""
    parser.description = (
        "Rewrites the configuration of a model trained on stored features so that it takes audio; the text stays the same."
    )
    parser.path("--train_config", "config.yaml of the model", "YAML", required=True)
    parser.path("--frontend", "frontend.yaml of its features (in their data directory)", "YAML", required=True)
    parser.path("--out", "the configuration to write; use it with the same model file", "YAML", required=True)
    parser.set_defaults(run=_raw_audio)


def _raw_audio(options: argparse.Namespace) -> None:
    from espnet_ee.store.train_config import write_raw_audio_config

    write_raw_audio_config(options.train_config, options.frontend, options.out)
    print(f"{options.out}: takes audio; use it with the same model file")


def add_pack(parser: Parser) -> None:
    """Options of ``espnet-ee pack``."""
    parser.description = "Packs a trained model with its decoding configurations and a generated model card into one folder."
    parser.epilog = "To share it: hf upload NAME OUT (pip install huggingface_hub)"
    _add_model(parser)
    parser.path("--out", "new folder, or an earlier package, which is replaced", required=True)
    parser.option("--name", "the model's name, OWNER/MODEL on the hub", required=True)
    parser.option("--licence", "as the hub names it: apache-2.0, cc-by-4.0, other, ...", required=True)
    parser.option("--training_data", "what the model was trained on, one line", required=True)
    parser.option("--language", "its code, such as en", default="")
    parser.option("--command", "the command line that trained it", default="")
    parser.path("--config", "decoding configurations, the first is the default (default: all that are calibrated)", "YAML",
                nargs="+")  # fmt: skip
    parser.set_defaults(run=_pack)


def _pack(options: argparse.Namespace) -> None:
    if options.name.split() != [options.name]:
        raise UsageError(f"--name {options.name!r}: give one word, OWNER/MODEL on the hub")
    from espnet_ee.store.checkpoint import experiment_files
    from espnet_ee.store.model_card import Card
    from espnet_ee.store.package import calibrated_configs, pack_model

    files = experiment_files(options.model, options.model_file)
    configs = calibrated_configs(options.model) if options.config is None else options.config
    exits_csv = options.model / "exits.csv"
    card = Card(options.name, options.licence, options.training_data, options.language, options.command)
    folder = pack_model(*files, options.out, card, configs, exits_csv if exits_csv.is_file() else None)
    print(f"{folder}: packed; to share it: hf upload {options.name} {folder}")
