#!/usr/bin/env python3
"""What stopping early saves: the time of the encoder up to each exit, as a share of the full pass.

    python tools/bench_encoder.py [--config egs/an4/asr1/conf/train_ee_conformer.yaml] [--seconds 10] [--repeats 9]

All exits are timed in turn inside each repeat, so that whatever else the machine does falls on all of them alike;
the medians of the repeats are compared. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import yaml

from espnet_ee.decode.greedy import read_frames
from espnet_ee.encoder.conformer import EarlyExitConformerEncoder
from espnet_ee.errors import UsageError, run
from espnet_ee.policy.features import FEATURES
from espnet_ee.policy.learned import LearnedPolicy

FRAMES_PER_SECOND = 100
DEFAULT_MELS = 80


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="egs/an4/asr1/conf/train_ee_conformer.yaml", help="training configuration")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the audio")
    parser.add_argument("--vocabulary", type=int, default=256, help="tokens of an exit's head")
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


def seconds_to_decide(width: int, frames: int, vocabulary: int, layers: tuple[int, ...]) -> tuple[float, float, float]:
    """Wall clock of one exit's head (with the log-softmax), of its evidence, and of the policy with most to compute."""
    head, hs, olens = torch.nn.Linear(width, vocabulary), torch.randn(1, frames, width), torch.tensor([frames])
    below = dict.fromkeys(layers[:-1], 1.0)
    policy = LearnedPolicy(0.0, dict.fromkeys(FEATURES, 1.0), below, below)
    [(before, path)] = read_frames(layers[0], head(hs).log_softmax(-1), olens)
    marks = [time.perf_counter()]
    log_probs = head(hs).log_softmax(-1)
    marks.append(time.perf_counter())
    [(evidence, _)] = read_frames(layers[0], log_probs, olens, previous=[path])
    marks.append(time.perf_counter())
    policy.should_stop([before, evidence])
    marks.append(time.perf_counter())
    return marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]


@torch.inference_mode()
def main() -> None:
    """Prints a table: exit, milliseconds, share of the full pass in time and in MACs."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    with open(arguments.config, encoding="utf-8") as stream:
        config = yaml.safe_load(stream)
    mels = (config.get("frontend_conf") or {}).get("n_mels", DEFAULT_MELS)
    encoder = EarlyExitConformerEncoder(mels, **config["encoder_conf"]).eval()
    features = torch.randn(1, int(arguments.seconds * FRAMES_PER_SECOND), mels)
    frames = encoder.shape().encoder_frames(features.size(1))
    layers = encoder.exit_layers
    seconds_to_exit(encoder, features, len(layers))  # warm-up
    times: list[list[float]] = [[] for _ in layers]
    deciding = []
    for _ in range(arguments.repeats):
        for place in range(len(layers)):
            times[place].append(seconds_to_exit(encoder, features, place + 1))
        deciding.append(seconds_to_decide(encoder.output_size(), frames, arguments.vocabulary, layers))
    macs = encoder.shape().segment_macs(features.size(1), layers)
    medians = [statistics.median(values) for values in times]
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.seconds:g} s of audio, "
          f"median of {arguments.repeats}; {arguments.config}")  # fmt: skip
    print(f"{'exit':>6} {'ms':>9} {'time':>8} {'MACs':>8}")
    for layer, median, count in zip(layers, medians, macs, strict=True):
        print(f"{layer:>6} {1000 * median:>9.2f} {median / medians[-1]:>8.1%} {count / macs[-1]:>8.1%}")
    print(f"at one exit (V {arguments.vocabulary}), as a share of the full encoder:")
    for name, values in zip(("head", "evidence", "policy (learned)"), zip(*deciding, strict=True), strict=True):
        decision = statistics.median(values)
        print(f"  {name:<17} {1000 * decision:.3f} ms, {decision / medians[-1]:.2%}")


if __name__ == "__main__":
    run(main)
