"""``espnet-ee decode``: data directories with a model that stops early; evidence of every exit; what is calibrated on it."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_ee import __version__
from espnet_ee.cli.parser import Parser
from espnet_ee.cli.score import add_calibration, calibration_of
from espnet_ee.errors import UsageError
from espnet_ee.policy.decoding import DecodingConfig, pairs, search_of_words
from espnet_ee.policy.registry import POLICIES

if TYPE_CHECKING:
    from espnet_ee.decode.selection import Calibration, LoadedModel
    from espnet_ee.decode.tuning import Tuning

TUNING = ("beam", "lm_weights", "insertions")
CALIBRATION = ("policies", "targets", "features", "online")


def add_decode(parser: Parser) -> None:
    """Options of ``espnet-ee decode``."""
    parser.description = (
        "Decodes data directories in one process, each with every configuration, into OUT/TAG/SET. TAG is the configuration's\n"
        "name or decode_every_exit, SET the data directory's. What is there of the same model, data and settings stays."
    )
    parser.path("--model", "folder of an experiment (exp/asr_...) or a package", required=True)
    parser.path("--model_file", "its parameters (default: valid.loss.ave.pth)", "FILE")
    parser.path("--data", "Kaldi data directories (wav.scp or feats.scp)", nargs="+", required=True)
    parser.path("--out", "folder for the decodings", required=True)
    parser.path("--config", "decoding configurations", "YAML", nargs="+", default=[])
    known = ", ".join(POLICIES)
    parser.option("--policy", f"a policy without a file: {known}; written as decode_NAME", choices=tuple(POLICIES))
    parser.option("--policy_conf", "its settings", nargs="+", default=[], metavar="KEY=VALUE")
    parser.option("--every_exit", "no stopping: the evidence of every exit", action="store_true")
    parser.option(
        "--search",
        "how texts are looked for, where no configuration says it: kind=attention (with decoders), beam=N, ... (default: kind=greedy)",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
    )
    parser.option("--nbest", "with it: N-best scores of this size, too", type=int, default=0, metavar="N")
    parser.option(
        "--batch_size", "utterances recognised together (default: as a configuration says, or 1)", type=int, metavar="N"
    )
    parser.option("--num_threads", "CPU threads (likewise)", type=int, metavar="N")
    parser.option("--device", "torch device", default="cpu")
    parser.option(
        "--chunk_ms",
        "a frame sees no more than its chunk and some frames before, as in a stream: milliseconds of a chunk (default: all)",
        type=int,
        metavar="MS",
    )
    group = parser.add_argument_group("calibration: the evidence of every exit, and of it OUT/policies/decode_NAME.yaml")
    group.add_argument("--calibrate_on", metavar="SET", help="the development set, one of --data")
    add_calibration(parser)
    parser.path("--lm", "with it: an n-gram model of the model's tokens (espnet-ee data lm); the evidence and what is calibrated on it are\n"
                "of a beam search with it, OUT/lm/decode_lm.yaml, whose weights are tuned on the development set first", "ARPA")  # fmt: skip
    parser.option("--beam", "with --lm: width of the beam (default: 10)", type=int, metavar="N")
    parser.option(
        "--lm_weights", "with --lm: weights of the language model to try; 0 is without it", type=float, nargs="+", metavar="X"
    )
    parser.option("--insertions", "with --lm: what to try to add for a token", type=float, nargs="+", metavar="X")
    add_online(parser)
    parser.set_defaults(run=_decode)


def _decode(options: argparse.Namespace) -> None:
    configs = _configs(options)
    if options.calibrate_on is None and any(getattr(options, name) is not None for name in CALIBRATION):
        raise UsageError(f"--{' --'.join(CALIBRATION)}: are for --calibrate_on; name the development set")
    calibration = None if options.calibrate_on is None else make_calibration(options)
    if options.lm is None and any(getattr(options, name) is not None for name in TUNING):
        raise UsageError(f"--{' --'.join(TUNING)}: are for --lm; name the language model")
    from espnet_ee.decode.selection import DecodeOptions, decode_sets
    from espnet_ee.store.checkpoint import experiment_files

    files = experiment_files(options.model, options.model_file)
    request = DecodeOptions(
        out=options.out,
        data=options.data,
        model_files=files,
        configs=configs,
        every_exit=options.every_exit,
        nbest=options.nbest,
        batch_size=options.batch_size,
        num_threads=options.num_threads,
        device=options.device,
        chunk_ms=options.chunk_ms,
        search=search_of_words(options.search, "--search"),
        calibration=calibration,
        tuning=None if options.lm is None else _tuning(options),
    )
    decode_sets(request, lambda: _load(options, files))


def _configs(options: argparse.Namespace) -> dict[str, DecodingConfig]:
    """The decoding configurations by tag; without any other request, that of the final exit."""
    configs: dict[str, DecodingConfig] = {}
    for path in options.config:
        config = DecodingConfig.read(path)
        if configs.setdefault(path.stem, config) != config:
            raise UsageError(f"--config {path}: another configuration has the name {path.stem}, too; rename one")
    settings = pairs(options.policy_conf, "--policy_conf")
    if settings and not options.policy:
        raise UsageError("--policy_conf: are settings of --policy; name it")
    if options.policy or not (configs or options.every_exit or options.calibrate_on):
        name = options.policy or "fixed"
        if f"decode_{name}" in configs:
            raise UsageError(f"--policy {name}: a configuration has the name decode_{name}; rename it")
        configs[f"decode_{name}"] = DecodingConfig(search=search_of_words(options.search, "--search")).changed(name, settings)
    return configs


def add_online(parser: Parser) -> None:
    """The option of what then runs of what is calibrated."""
    parser.option("--online", "policies whose calibrated configurations then decode every set (default: learned, if it is calibrated)", nargs="*", metavar="NAME")  # fmt: skip


def make_calibration(options: argparse.Namespace) -> Calibration:
    """What ``calibrate_on`` and the options of :func:`add_online` and :func:`espnet_ee.cli.score.add_calibration` say.

    Raises:
        UsageError: there is no such policy, feature or target, or a policy would run that is not calibrated.
    """
    from espnet_ee.decode.selection import Calibration

    policies, targets, features = calibration_of(options)
    online = options.online
    if online is None:
        online = [name for name in ("learned",) if name in policies]
    return Calibration(options.calibrate_on, policies, targets, features, online)


def _tuning(options: argparse.Namespace) -> Tuning:
    from espnet_ee.decode.tuning import Tuning

    return Tuning(options.lm, **{name: getattr(options, name) for name in TUNING if getattr(options, name) is not None})


def _load(options: argparse.Namespace, files: Sequence[Path]) -> LoadedModel:
    import torch

    from espnet_ee.decode.selection import LoadedModel
    from espnet_ee.decode.torch_session import TorchSession
    from espnet_ee.host.compat import espnet_version
    from espnet_ee.store.package import open_model

    package = open_model(options.model, options.device, options.model_file)
    facts = {
        "train_config": str(files[0]),
        "model_file": str(files[1]),
        "parameters": sum(parameter.numel() for parameter in package.model.parameters()),
        "exit_layers": list(package.model.encoder.exit_layers),
        "versions": {
            "espnet_ee": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "espnet": espnet_version(),
        },
    }
    session = TorchSession(package.model, package.sample_rate)
    session.use_chunk(options.chunk_ms, package.sample_rate)
    return LoadedModel(session, package.sample_rate, facts)
