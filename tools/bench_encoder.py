#!/usr/bin/env python3
"""What stopping early saves: the time of the encoder up to each exit, as a share of the full pass; and what deciding costs.

    python tools/bench_encoder.py [--config egs/an4/asr1/conf/train_ee_conformer.yaml] [--seconds 10] [--repeats 9]

All exits are timed in turn inside each repeat, so that whatever else the machine does falls on all of them alike;
the medians of the repeats are compared. Weights are random: time does not depend on them. Deciding is timed within the pass,
at every exit, added up: head (linear layer and softmax), evidence (all of it, computed in the softmax's pass, less the time of
the softmax alone), policy (the learned one).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import yaml

from espnet_ee.decode.torch_session import reduce_frames
from espnet_ee.encoder.conformer import EarlyExitConformerEncoder
from espnet_ee.errors import UsageError, run
from espnet_ee.policy.frames import evidence_of
from espnet_ee.policy.learned import LearnedPolicy
from espnet_ee.score.fit import DEFAULT_FEATURES

FRAMES_PER_SECOND = 100
DEFAULT_MELS = 80


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="egs/an4/asr1/conf/train_ee_conformer.yaml", help="training configuration")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the audio")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[256, 500], help="tokens of an exit's head")
    parser.add_argument("--repeats", type=int, default=9, help="timed repeats, 7 or more")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.repeats < 7:
        raise UsageError("--repeats: a median of fewer than 7 says little; give 7 or more")
    return arguments


def seconds_to_exit(encoder: EarlyExitConformerEncoder, features: torch.Tensor, exits: int) -> float:
    """Wall clock of one pass that stops at the given exit (counted from 1)."""
    started = time.perf_counter()
    passing = encoder.iter_exits(features, torch.tensor([features.size(1)]))
    for _ in range(exits):
        next(passing)
    return time.perf_counter() - started


def seconds_to_decide(encoder: EarlyExitConformerEncoder, features: torch.Tensor, vocabulary: int) -> list[float]:
    """Wall clock of a pass that reads every exit, apart: encoder, linear layers, evidence with softmax, softmax alone, policy."""
    layers, olens = encoder.exit_layers, encoder.frames_of(torch.tensor([features.size(1)]))
    head = torch.nn.Linear(encoder.output_size(), vocabulary)
    below = dict.fromkeys(layers[:-1], 1.0)
    policy = LearnedPolicy(0.0, dict.fromkeys(DEFAULT_FEATURES, 1.0), below, below)
    spent, passed = [0.0] * 5, []
    passing = encoder.iter_exits(features, torch.tensor([features.size(1)]))
    for layer in layers:
        marks = [time.perf_counter()]
        output = next(passing)
        marks.append(time.perf_counter())
        logits = head(output.hs)
        marks.append(time.perf_counter())
        [frames] = reduce_frames(logits, olens.tolist())
        evidence = evidence_of(layer, frames, 0, policy.reads)
        marks.append(time.perf_counter())
        logits.softmax(-1)
        marks.append(time.perf_counter())
        passed.append(evidence)
        policy.should_stop(passed)
        marks.append(time.perf_counter())
        spent = [one + after - before for one, before, after in zip(spent, marks[:-1], marks[1:], strict=True)]
    return spent


@torch.inference_mode()
def main() -> None:
    """Prints a table: exit, milliseconds, share of the full pass in time and in MACs; then the cost of deciding."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    with open(arguments.config, encoding="utf-8") as stream:
        config = yaml.safe_load(stream)
    mels = (config.get("frontend_conf") or {}).get("n_mels", DEFAULT_MELS)
    encoder = EarlyExitConformerEncoder(mels, **config["encoder_conf"]).eval()
    features = torch.randn(1, int(arguments.seconds * FRAMES_PER_SECOND), mels)
    layers = encoder.exit_layers
    seconds_to_exit(encoder, features, len(layers))  # warm-up
    times: list[list[float]] = [[] for _ in layers]
    deciding: dict[int, list[list[float]]] = {vocabulary: [] for vocabulary in arguments.vocabulary}
    for _ in range(arguments.repeats):
        for place in range(len(layers)):
            times[place].append(seconds_to_exit(encoder, features, place + 1))
        for vocabulary, found in deciding.items():
            found.append(seconds_to_decide(encoder, features, vocabulary))
    table = encoder.macs()
    macs = [table.encoder_macs(layer, features.size(1)) for layer in layers]
    medians = [statistics.median(values) for values in times]
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.seconds:g} s of audio, "
          f"median of {arguments.repeats}; {arguments.config}")  # fmt: skip
    print(f"{'exit':>6} {'ms':>9} {'time':>8} {'MACs':>8}")
    for layer, median, count in zip(layers, medians, macs, strict=True):
        print(f"{layer:>6} {1000 * median:>9.2f} {median / medians[-1]:>8.1%} {count / macs[-1]:>8.1%}")
    print("deciding at all exits, added up, as a share of the encoder's time (goal for evidence + policy: 1 % up to V 500):")
    for vocabulary, found in deciding.items():
        whole, linear, reading, softmax, policy = (statistics.median(values) for values in zip(*found, strict=True))
        shares = (linear + softmax, reading - softmax, policy, reading - softmax + policy)
        heads, evidence, policies, both = (f"{share / whole:.2%}" for share in shares)
        print(f"  V {vocabulary}: heads {heads}, evidence {evidence}, policy {policies}; evidence + policy {both}")


if __name__ == "__main__":
    run(main)
