"""Fits the weights with which exits are combined, on a development set, and writes them as YAML (key ``combine``).

Put that key into a decoding configuration, or give the file to asr_inference as --config.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from espnet_ee.errors import UsageError, UserError, run
from espnet_ee.files import atomic_write
from espnet_ee.kaldi import read_scp


def get_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asr_train_config", type=Path, required=True, help="the training's config.yaml")
    parser.add_argument("--asr_model_file", type=Path, required=True, help="the parameters, *.pth")
    parser.add_argument("--data_dir", type=Path, required=True, help="development set, with wav.scp or feats.scp and text")
    parser.add_argument("--output", type=Path, required=True, help="YAML to write")
    parser.add_argument("--utterances", type=int, default=200, help="at most so many are used (default 200)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads, computes every exit once, fits, writes."""
    options = get_parser().parse_args(arguments)
    if options.utterances < 1:
        raise UsageError(f"--utterances is {options.utterances}; give 1 or more")
    # After the cheap checks: ESPnet takes seconds to import.
    from espnet_ee.data.inputs import read_inputs
    from espnet_ee.decode.fit_combine import fit_on
    from espnet_ee.store.checkpoint import load_model
    from espnet_ee.store.train_config import read_train_config, sampling_rate, text_to_tokens

    config = read_train_config(options.asr_train_config)
    texts = read_scp(options.data_dir / "text", allow_empty=True)
    inputs = [item for item in read_inputs(options.data_dir, sampling_rate(config)) if texts.get(item.utt_id)]
    # Spread over the set: its first utterances are of few speakers.
    chosen = inputs[:: max(1, -(-len(inputs) // options.utterances))]
    if not chosen:
        raise UserError(f"{options.data_dir}: no utterance with a text")
    model = load_model(options.asr_train_config, options.asr_model_file)
    tokens = text_to_tokens(config)
    weights = fit_on(model, [item.load() for item in chosen], [tokens(texts[item.utt_id]) for item in chosen])
    with atomic_write(options.output) as stream:
        stream.write(f"# Fitted on {len(chosen)} utterances of {options.data_dir.name}.\n")
        stream.write(yaml.safe_dump({"combine": weights}, sort_keys=False))
    print(f"{options.output}: fitted on {len(chosen)} utterances")


if __name__ == "__main__":
    run(main)
