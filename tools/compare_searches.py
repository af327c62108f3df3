#!/usr/bin/env python3
"""What searches give at every exit: word error rates of greedy, a beam, and a beam with a language model, side by side.

    python tools/compare_searches.py --model exp/asr_X --model_file exp/asr_X/valid.loss.ave.pth --data dump/raw/test \
        --search beam.yaml exp/asr_X/lm/decode_lm.yaml [--policy exp/asr_X/policies/decode_learned_wer_loss1.yaml ...]

The searches are those of decoding configurations; greedy is always among them. Every utterance is computed once. With policies also the
texts at the exits where each stops the utterances. Prints Markdown: WER in per cent, and milliseconds of CPU time of searching an utterance.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.api import EarlyExitASR
from espnet_ee.data.inputs import read_inputs
from espnet_ee.errors import UserError, run
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.frames import FIELDS, evidence_of
from espnet_ee.score.wer import add_counts, count_edits
from espnet_ee.search.beam import build_search
from espnet_ee.text import tokens_to_text


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the experiment, with config.yaml")
    parser.add_argument("--model_file", type=Path, required=True, help="its parameters")
    parser.add_argument("--data", type=Path, required=True, help="data directory with text")
    parser.add_argument("--search", type=Path, nargs="+", required=True, help="decoding configurations")
    parser.add_argument("--policy", type=Path, nargs="+", default=[], help="decoding configurations")
    return parser.parse_args()


def texts_of(
    asr: EarlyExitASR, data: Path, configs: dict[str, DecodingConfig], policies: dict[str, ExitPolicy]
) -> tuple[dict[tuple[str, str], dict[str, str]], dict[str, float]]:
    """Texts by place (an exit, a policy) and search, then utterance; and seconds of searching, by search."""
    session = asr.session
    searches = {name: build_search(config.search, tuple(session.tokens), session.blank) for name, config in configs.items()}
    texts: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    seconds = dict.fromkeys(searches, 0.0)
    for item in read_inputs(data, asr.sample_rate):
        state, evidence, going_on = session.start([item.load()]), [], dict(policies)
        for layer in session.exit_layers:
            state = session.advance(state)
            [frames] = session.read(state, [0], frozenset({"log_probs"}))
            evidence.append(evidence_of(layer, frames, session.blank, FIELDS))
            stopping = [
                name for name, policy in going_on.items() if layer == session.exit_layers[-1] or policy.should_stop(evidence)
            ]
            for name, search in searches.items():
                started = time.process_time()
                tokens = search(frames).tokens
                seconds[name] += time.process_time() - started
                text = tokens_to_text([session.tokens[token] for token in tokens], session.token_type)
                for place in (f"exit {layer}", *stopping):
                    texts[place, name][item.utt_id] = text
            for name in stopping:
                del going_on[name]
    return texts, seconds


def rate(references: dict[str, str], texts: dict[str, str]) -> float:
    """Word error rate in per cent."""
    return add_counts(count_edits([(references[utt], text) for utt, text in texts.items()], "word")).rate


def rows(
    places: Sequence[str], names: Sequence[str], texts: dict[tuple[str, str], dict[str, str]], references: dict[str, str]
) -> None:
    """Prints a line for each place; beside every rate, its change against the first search."""
    for place in places:
        rates = [rate(references, texts[place, name]) for name in names]
        cells = [
            f"{rates[0]:.2f}",
            *(f"{own:.2f} ({100 * (own / rates[0] - 1):+.1f} %)" if rates[0] else f"{own:.2f}" for own in rates[1:]),
        ]
        print(f"|{place}|{'|'.join(cells)}|")


def main() -> None:
    """Prints the table."""
    arguments = parse_arguments()
    asr = EarlyExitASR.from_files(arguments.model / "config.yaml", arguments.model_file)
    asr.session.use_threads(1)
    references = read_scp(arguments.data / "text", allow_empty=True)
    configs = {
        "greedy": DecodingConfig(),
        **{str(DecodingConfig.read(path).search): DecodingConfig.read(path) for path in arguments.search},
    }
    policies = {
        path.stem.removeprefix("decode_"): DecodingConfig.read(path).policy_for(asr.exit_layers) for path in arguments.policy
    }
    texts, seconds = texts_of(asr, arguments.data, configs, policies)
    if any(set(said) != set(references) for said in texts.values()):
        raise UserError(f"{arguments.data}: text and audio are of other utterances")
    names = list(configs)
    print(f"|{len(references)} utterances of {arguments.data.name}|{'|'.join(names)}|\n|---|{'---:|' * len(names)}")
    rows([*(f"exit {layer}" for layer in asr.exit_layers), *policies], names, texts, references)
    searched = len(references) * len(asr.exit_layers)
    print(f"|ms of CPU time an utterance|{'|'.join(f'{1000 * seconds[name] / searched:.2f}' for name in names)}|")


if __name__ == "__main__":
    run(main)
