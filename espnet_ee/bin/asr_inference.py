"""Recognises a data directory with a model that stops as early as its policy allows.

Example:
    python -m espnet_ee.bin.asr_inference --asr_train_config exp/asr/config.yaml --asr_model_file exp/asr/valid.loss.ave.pth \\
        --data_dir dump/raw/test --output_dir exp/asr/decode_entropy/test --policy entropy --policy_conf threshold=0.01
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

from espnet_ee import __version__
from espnet_ee.errors import UsageError, UserError, run
from espnet_ee.files import read_yaml
from espnet_ee.policy.registry import policy_of

DEFAULTS = {"policy": "fixed", "policy_conf": {}, "combine": {}, "batch_size": 1, "num_threads": 1}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="asr_inference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--asr_train_config", type=Path, required=True, help="the training's config.yaml")
    parser.add_argument("--asr_model_file", type=Path, required=True, help="the parameters, *.pth")
    parser.add_argument("--data_dir", type=Path, required=True, help="Kaldi data directory (wav.scp or feats.scp)")
    parser.add_argument("--output_dir", type=Path, required=True, help="new, or an earlier decoding, which is replaced")
    parser.add_argument("--config", type=Path, help="YAML with policy, policy_conf, combine, batch_size, num_threads")
    parser.add_argument("--policy", help="exit policy (default: fixed, at the final exit)")
    parser.add_argument("--policy_conf", nargs="*", metavar="KEY=VALUE", help="the policy's settings")
    parser.add_argument("--all_exits", type=_boolean, default=False, help="true: no stopping; write evidence of all exits")
    parser.add_argument("--nbest", type=int, default=0, help="with --all_exits true: also N-best scores of this size")
    parser.add_argument("--batch_size", type=int, help="utterances recognised together (default 1)")
    parser.add_argument("--num_threads", type=int, help="CPU threads (default 1)")
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    return parser.parse_args()


def _boolean(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() == "true"


def read_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of the run: defaults, then ``--config``, then the command line.

    Raises:
        UserError: the YAML file is missing or holds an unknown key or a value of another kind.
    """
    settings = dict(DEFAULTS)
    if arguments.config:
        settings.update(_read_config(arguments.config))
    if arguments.policy:
        settings.update(policy=arguments.policy, policy_conf={})
    if arguments.policy_conf:
        given = dict(_pair(text) for text in arguments.policy_conf)
        settings["policy_conf"] = {**settings["policy_conf"], **given}
    for name in ("batch_size", "num_threads"):
        if getattr(arguments, name) is not None:
            settings[name] = getattr(arguments, name)
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise UsageError(f"{name} is {settings[name]!r}; give a whole number from 1 on")
    return settings


def _read_config(path: Path) -> dict[str, Any]:
    config = read_yaml(path, "see conf/decode_*.yaml", allow_empty=True)
    for key in config:
        if key not in DEFAULTS:
            raise UsageError(f"{path}: unknown key {key!r}; known keys are {', '.join(DEFAULTS)}")
    for key in ("policy_conf", "combine"):  # an empty value is an empty table
        if config.get(key) is None:
            config.pop(key, None)
        elif not isinstance(config[key], dict):
            raise UserError(f"{path}: {key} must be 'key: value' lines, not {config[key]!r}")
    return config


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise UsageError(f"--policy_conf: {text!r} is not KEY=VALUE")
    return key, value


def main() -> None:
    """Parses, loads, decodes, writes."""
    arguments = parse_arguments()
    settings = read_settings(arguments)
    if arguments.nbest and (arguments.nbest < 2 or not arguments.all_exits):
        raise UsageError(f"--nbest {arguments.nbest}: give 2 or more, with --all_exits true")
    if arguments.all_exits:
        if arguments.policy or arguments.policy_conf:
            raise UsageError("--all_exits true reads every exit, whatever a policy says; give no --policy with it")
        settings.update(policy="fixed", policy_conf={})
    # After the cheap checks: ESPnet takes seconds to import.
    import torch

    from espnet_ee.data.inputs import read_inputs
    from espnet_ee.decode.combine import read_weights
    from espnet_ee.decode.recognizer import EarlyExitRecognizer
    from espnet_ee.decode.results import check_output_dir, decode, write_decoding
    from espnet_ee.host.compat import espnet_version
    from espnet_ee.store.checkpoint import load_model
    from espnet_ee.store.train_config import read_train_config, sampling_rate

    check_output_dir(arguments.output_dir)
    combine = read_weights(settings["combine"])
    torch.set_num_threads(settings["num_threads"])
    inputs = read_inputs(arguments.data_dir, sampling_rate(read_train_config(arguments.asr_train_config)))
    model = load_model(arguments.asr_train_config, arguments.asr_model_file, arguments.device)
    policy = policy_of(settings, model.encoder.exit_layers[-1])
    recognizer = EarlyExitRecognizer(model, policy, arguments.all_exits, arguments.nbest, combine)
    decoding = decode(recognizer, inputs, settings["batch_size"], _show_progress)
    facts = {
        **settings,
        "device": arguments.device,
        "train_config": str(arguments.asr_train_config),
        "model_file": str(arguments.asr_model_file),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "exit_layers": list(model.encoder.exit_layers),
        "versions": {
            "espnet_ee": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "espnet": espnet_version(),
        },
    }
    write_decoding(arguments.output_dir, decoding, facts, arguments.all_exits)
    print(f"{arguments.output_dir}: {len(inputs)} utterances, RTF {decoding.rtf:.4f}")


def _show_progress(done: int, total: int) -> None:
    if done == total or done % max(1, total // 10) == 0:
        print(f"decoded {done}/{total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main)
