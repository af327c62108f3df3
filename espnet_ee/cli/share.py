"""What makes files for others of a trained model: ``export``, ``raw-audio``, ``pack``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from espnet_ee.cli.parser import Parser, refuse_input
from espnet_ee.cli.recogniser import quiet
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import is_file
from espnet_ee.policy.attending import ATTENTION
from espnet_ee.policy.decoding import DecodingConfig

MODEL = "folder of an experiment (exp/asr_...)"


def _add_model(parser: Parser, text: str = MODEL) -> None:
    parser.path("--model", text, required=True)
    parser.path("--model_file", "its parameters (default: valid.loss.ave.pth)", "FILE")


def add_export(parser: Parser) -> None:
    """Options of ``espnet-ee export``."""
    parser.description = (
        "Writes a model for others. onnx: OUT/onnx, for devices without torch: a graph for every segment between two exits,\n"
        "one file that stops by itself, tokens.txt, model.yaml. stock: one exit as a plain ESPnet model (config.yaml,\n"
        "model.pth), which anybody can use without this package."
    )
    parser.epilog = (
        "sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(model='OUT/onnx/self_stopping.onnx', tokens='OUT/onnx/tokens.txt')\n"
        "espnet2.bin.asr_inference.Speech2Text('OUT/config.yaml', 'OUT/model.pth', ctc_weight=1.0)"
    )
    _add_model(parser, f"{MODEL} or package")
    parser.option("--format", "for whom", choices=("onnx", "stock"), default="onnx")
    parser.option("--policy", "onnx: the calibrated configuration of the model, or a decoding configuration's file, that the "
                  "self-stopping file holds (default: the model's, as of espnet-ee transcribe)",
                  metavar="NAME|FILE")  # fmt: skip
    parser.option("--int8", "onnx: files of 8 bits, too", action="store_true")
    parser.option("--exit_layer", "stock: the exit; onnx: exits that also become a file each", type=int, nargs="+", metavar="K",
                  default=[])  # fmt: skip
    parser.path("--out", "stock: new, or an earlier export, which is replaced; onnx: only its folder onnx is", required=True)
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    if options.format == "onnx":
        return _export_onnx(options)
    if options.policy or options.int8 or len(options.exit_layer) != 1:
        raise UsageError("--format stock: give one --exit_layer, and neither --policy nor --int8")
    # Here and below only when it is needed: ESPnet takes seconds to import.
    from espnet_ee.store.checkpoint import experiment_files
    from espnet_ee.store.export_stock import export_stock

    train_config, model_file = experiment_files(options.model, options.model_file)
    folder = export_stock(train_config, model_file, options.exit_layer[0], options.out)
    print(f"{folder}: config.yaml and model.pth, a stock model of {options.exit_layer[0]} blocks")


def _export_onnx(options: argparse.Namespace) -> None:
    _need_onnx("onnxscript", *(["onnxruntime"] if options.int8 else []))
    with quiet():
        from espnet_ee.store.onnx_folder import OnnxExport, export_onnx
        from espnet_ee.store.package import open_model

        package = open_model(options.model, model_file=options.model_file)
    configs, default = _with_policy(options.policy, *_of_heads(package.configs, package.default))
    if default is not None and configs[default].search.kind == ATTENTION:
        raise UsageError(f"--policy {options.policy}: searches with attention decoders, which are not exported; name another")
    if getattr(package.model, "decoder", None) is not None:
        print("the exits' CTC heads are exported, their attention decoders are not")
    exits_csv = options.model / "exits.csv"
    export = OnnxExport(configs, default, options.exit_layer, options.int8, exits_csv if exits_csv.is_file() else None)
    folder = export_onnx(package.model, package.sample_rate, options.out, export, lambda line: print(line, flush=True))
    if package.model.encoder.takes == "samples":
        print("the graphs take samples, which sherpa-onnx does not give; espnet-ee transcribe does")
    if default is None:
        print("no calibrated policy and no --policy: no file that stops by itself")
    print(f"{folder}: exported; on a device: espnet-ee transcribe AUDIO --model {options.out}")


def _of_heads(configs: Mapping[str, DecodingConfig], default: str | None) -> tuple[dict[str, DecodingConfig], str | None]:
    """The decoding configurations that need no attention decoder, and the name of the default one if it is among them."""
    kept = {name: config for name, config in configs.items() if config.search.kind != ATTENTION}
    return kept, default if default in kept else None


def _need_onnx(*libraries: str) -> None:
    for library in ("onnx", *libraries):
        if find_spec(library) is None:
            raise UserError(f"{library} is not installed; in the project's folder: pip install -e '.[onnx]'")


def add_set_threshold(parser: Parser) -> None:
    """Options of ``espnet-ee set-threshold``."""
    parser.description = "Changes the threshold in the self-stopping ONNX files of an export, without exporting again."
    parser.path("--model", "folder that espnet-ee export wrote to, or its folder onnx", required=True)
    parser.option("--threshold", "of the policy that the files hold; of fixed the exit layer", type=float, required=True,
                  metavar="X")  # fmt: skip
    parser.set_defaults(run=_set_threshold)


def _set_threshold(options: argparse.Namespace) -> None:
    _need_onnx()
    from espnet_ee.store.onnx_threshold import change_threshold

    files, policy, before = change_threshold(options.model, options.threshold)
    for file in files:
        print(f"{file}: threshold {options.threshold:g} of {policy} (before: {before:g})")


def _with_policy(
    policy: str | None, configs: Mapping[str, DecodingConfig], default: str | None
) -> tuple[dict[str, DecodingConfig], str | None]:
    """The decoding configurations with that of ``--policy``, and the name of the default one."""
    if policy is None:
        return dict(configs), default
    name = policy.removeprefix("decode_")
    if name in configs:
        return dict(configs), name
    if not is_file(policy):
        raise UsageError(f"--policy {policy}: no such file, and the model has {', '.join(configs) or 'none'}")
    name = Path(policy).stem.removeprefix("decode_")
    return {**configs, name: DecodingConfig.read(policy)}, name


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

    refuse_input(options.out, [options.train_config, options.frontend])
    write_raw_audio_config(options.train_config, options.frontend, options.out)
    print(f"{options.out}: takes audio; use it with the same model file")


def add_pack(parser: Parser) -> None:
    """Options of ``espnet-ee pack``."""
    parser.description = (
        "Packs a trained model with its decoding configurations and a generated model card into one folder; its folder onnx, too,\n"
        "where `espnet-ee export --model MODEL --out MODEL` has made one."
    )
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
    from espnet_ee.exported import DESCRIPTION
    from espnet_ee.exported import FOLDER as ONNX

    with quiet():
        from espnet_ee.store.checkpoint import experiment_files
        from espnet_ee.store.model_card import Card
        from espnet_ee.store.package import calibrated_configs, pack_model

        files = experiment_files(options.model, options.model_file)
        configs = calibrated_configs(options.model) if options.config is None else options.config
        exits_csv, exported = options.model / "exits.csv", options.model / ONNX
        folder = pack_model(
            *files,
            options.out,
            Card(options.name, options.licence, options.training_data, options.language, options.command),
            configs,
            exits_csv if exits_csv.is_file() else None,
            exported if (exported / DESCRIPTION).is_file() else None,
        )
    print(f"{folder}: packed; to share it: hf upload {options.name} {folder}")
