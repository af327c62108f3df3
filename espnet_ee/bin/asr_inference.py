"""Recognises a data directory with a model that stops as early as its policy allows.

Example:
    python -m espnet_ee.bin.asr_inference --asr_train_config exp/asr/config.yaml --asr_model_file exp/asr/valid.loss.ave.pth \\
        --data_dir dump/raw/test --output_dir exp/asr/decode_entropy/test --policy entropy --policy_conf threshold=0.01
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import replace
from pathlib import Path

from espnet_ee import __version__
from espnet_ee.errors import UsageError, run
from espnet_ee.policy.decoding import DecodingConfig


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="asr_inference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--asr_train_config", type=Path, required=True, help="the training's config.yaml")
    parser.add_argument("--asr_model_file", type=Path, required=True, help="the parameters, *.pth")
    parser.add_argument("--data_dir", type=Path, required=True, help="Kaldi data directory (wav.scp or feats.scp)")
    parser.add_argument("--output_dir", type=Path, required=True, help="new, or an earlier decoding, which is replaced")
    parser.add_argument("--config", type=Path, help="YAML with policy, policy_conf, batch_size, num_threads")
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


def read_settings(arguments: argparse.Namespace) -> DecodingConfig:
    """Settings of the run: defaults, then ``--config``, then the command line.

    Raises:
        UserError: the YAML file is missing or holds an unknown key or a value of another kind.
    """
    config = DecodingConfig.read(arguments.config) if arguments.config else DecodingConfig()
    settings = dict(_pair(text) for text in arguments.policy_conf or [])
    numbers = {"batch_size": arguments.batch_size, "num_threads": arguments.num_threads}
    return config.changed(arguments.policy, settings, **numbers)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise UsageError(f"--policy_conf: {text!r} is not KEY=VALUE")
    return key, value


def main() -> None:
    """Parses, loads, decodes, writes."""
    arguments = parse_arguments()
    if arguments.nbest and (arguments.nbest < 2 or not arguments.all_exits):
        raise UsageError(f"--nbest {arguments.nbest}: give 2 or more, with --all_exits true")
    if arguments.all_exits and (arguments.policy or arguments.policy_conf):
        raise UsageError("--all_exits true reads every exit, whatever a policy says; give no --policy with it")
    settings = read_settings(arguments)
    if arguments.all_exits:
        settings = replace(settings, policy=None)
    # After the cheap checks: ESPnet takes seconds to import.
    import torch

    from espnet_ee.data.inputs import read_inputs
    from espnet_ee.decode.results import check_output_dir, decode, write_decoding
    from espnet_ee.decode.torch_session import TorchSession
    from espnet_ee.host.compat import espnet_version
    from espnet_ee.store.checkpoint import load_model
    from espnet_ee.store.train_config import read_train_config, sampling_rate

    check_output_dir(arguments.output_dir)
    inputs = read_inputs(arguments.data_dir, sampling_rate(read_train_config(arguments.asr_train_config)))
    model = load_model(arguments.asr_train_config, arguments.asr_model_file, arguments.device)
    settings.policy_for(model.encoder.exit_layers)
    decoding = decode(TorchSession(model), settings, inputs, arguments.all_exits, arguments.nbest, _show_progress)
    facts = {
        **settings.to_mapping(),
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
