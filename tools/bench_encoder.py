#!/usr/bin/env python3
"""What stopping early saves: the time of an encoder up to each exit; several encoders side by side, all in one run.

    python tools/bench_encoder.py [--config A.yaml B.yaml ...] [--seconds 10] [--repeats 9] [--training]

In each repeat all encoders and exits are timed in turn, so that whatever else the machine does falls on all of them alike;
the medians of the repeats are compared, and the first encoder's full pass is the measure of all others. Weights are random:
time does not depend on them. Deciding is timed within the pass, at every exit, added up: head (linear layer and softmax),
evidence (all that the policy reads, computed in the softmax's pass, less the time of the softmax alone), policy (learned).
--training times a step on 8 utterances of that length: all exits' CTC losses, forward and backward.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from espnet_ee.decode.torch_session import reduce_frames
from espnet_ee.encoder.base import SegmentEncoder
from espnet_ee.errors import UsageError, run
from espnet_ee.files import read_yaml
from espnet_ee.model.ctc import exits_ctc_loss
from espnet_ee.plugin.classes import ENCODERS
from espnet_ee.policy.frames import evidence_of
from espnet_ee.policy.learned import LearnedPolicy
from espnet_ee.score.fit import DEFAULT_FEATURES

FRAMES_PER_SECOND = 100
DEFAULT_MELS = 80
BATCH, TOKENS, CHARACTERS = 8, 40, 30  # of a training step


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["egs/an4/asr1/conf/train_ee_conformer.yaml"]
    parser.add_argument("--config", type=Path, nargs="+", default=default, help="training configurations")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the audio")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[256, 500], help="tokens of an exit's head")
    parser.add_argument("--repeats", type=int, default=9, help="timed repeats, 7 or more")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--training", action="store_true", help="time a training step, too")
    arguments = parser.parse_args()
    if arguments.repeats < 7:
        raise UsageError("--repeats: a median of fewer than 7 says little; give 7 or more")
    return arguments


def make_encoder(path: Path) -> SegmentEncoder:
    """The encoder of a training configuration, with random weights."""
    config = read_yaml(path, "give a training configuration")
    name = config.get("encoder")
    if name not in ENCODERS:
        raise UsageError(f"{path}: encoder {name!r} has no exits; choose {', '.join(ENCODERS)}")
    mels = (config.get("frontend_conf") or {}).get("n_mels", DEFAULT_MELS)
    return ENCODERS[name](mels, **config["encoder_conf"]).eval()


def clock(work: Callable[[], Any]) -> float:
    """Seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def stop_at(encoder: SegmentEncoder, features: torch.Tensor, exits: int) -> None:
    """One pass that stops at the given exit (counted from 1); 0: before the first block."""
    lengths = torch.tensor([features.size(1)])
    if not exits:
        encoder.start(features, lengths)
        return
    passing = encoder.iter_exits(features, lengths)
    for _ in range(exits):
        next(passing)


def train_step(encoder: SegmentEncoder, heads: torch.nn.ModuleList, features: torch.Tensor) -> None:
    """Forward and backward of all exits' CTC losses."""
    batch = features.size(0)
    outputs = list(encoder.iter_exits(features, torch.full((batch,), features.size(1))))
    log_probs = torch.stack([head(output.hs).log_softmax(-1) for head, output in zip(heads, outputs, strict=True)])
    text = torch.randint(1, CHARACTERS, (batch, TOKENS))
    exits_ctc_loss(log_probs, outputs[-1].olens, text, torch.full((batch,), TOKENS)).sum().backward()
    for parameter in (*encoder.parameters(), *heads.parameters()):
        parameter.grad = None


def seconds_to_decide(encoder: SegmentEncoder, features: torch.Tensor, vocabulary: int) -> list[float]:
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
        spent = [total + after - before for total, before, after in zip(spent, marks[:-1], marks[1:], strict=True)]
    return spent


def print_exits(path: Path, encoder: SegmentEncoder, seconds: list[float], frames: int, measure: float) -> None:
    """One encoder's table; ``seconds`` of the front and of every exit, ``measure`` those of the first encoder's full pass."""
    table, layers = encoder.macs(), encoder.exit_layers
    macs = [table.encoder_macs(layer, frames) for layer in layers]
    macs = [macs[0] - table.block_macs(layers[0], table.encoder_frames(frames)), *macs]
    count = sum(parameter.numel() for parameter in encoder.parameters())
    print(f"{path}: {count / 1e6:.1f} M parameters")
    print(f"{'exit':>6} {'ms':>9} {'of full':>8} {'of first':>8} {'MACs':>8} {'MMACs':>9}")
    for name, spent, cost in zip(("front", *layers), seconds, macs, strict=True):
        shares = f"{spent / seconds[-1]:>8.1%} {spent / measure:>8.1%} {cost / macs[-1]:>8.1%}"
        print(f"{name:>6} {1000 * spent:>9.2f} {shares} {cost / 1e6:>9.1f}")


def print_deciding(encoder: SegmentEncoder, features: torch.Tensor, vocabularies: list[int], repeats: int) -> None:
    """What heads, evidence and policy cost beside the encoder."""
    print("deciding at all exits, added up, as a share of the encoder's time:")
    for vocabulary in vocabularies:
        passes = [seconds_to_decide(encoder, features, vocabulary) for _ in range(repeats)]
        whole, linear, reading, softmax, policy = (statistics.median(values) for values in zip(*passes, strict=True))
        shares = (linear + softmax, reading - softmax, policy, reading - softmax + policy)
        heads, evidence, policies, both = (f"{share / whole:.2%}" for share in shares)
        print(f"  V {vocabulary}: heads {heads}, evidence {evidence}, policy {policies}; evidence + policy {both}")


def time_training(paths: list[Path], encoders: list[SegmentEncoder], frames: int, repeats: int) -> None:
    """Prints the time of a training step of each encoder, the first being the measure."""
    heads = [
        torch.nn.ModuleList(torch.nn.Linear(encoder.output_size(), CHARACTERS) for _ in encoder.exit_layers).train()
        for encoder in encoders
    ]
    times: list[list[float]] = [[] for _ in encoders]
    for repeat in range(repeats + 1):
        for place, (encoder, own) in enumerate(zip(encoders, heads, strict=True)):
            encoder.train()
            features = torch.randn(BATCH, frames, encoder.input_size)
            spent = clock(lambda e=encoder, h=own, f=features: train_step(e, h, f))
            if repeat:  # the first is a warm-up
                times[place].append(spent)
    medians = [statistics.median(values) for values in times]
    for path, median in zip(paths, medians, strict=True):
        print(f"training step, {BATCH} utterances: {1000 * median:.0f} ms, {median / medians[0]:.1%} of the first: {path}")


def main() -> None:
    """Prints a table for each encoder; then the cost of deciding with the last, and of training."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    encoders = [make_encoder(path) for path in arguments.config]
    frames = int(arguments.seconds * FRAMES_PER_SECOND)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.seconds:g} s, median of {arguments.repeats}")
    with torch.inference_mode():
        inputs = [torch.randn(1, frames, encoder.input_size) for encoder in encoders]
        times: list[list[list[float]]] = [[[] for _ in range(len(encoder.exit_layers) + 1)] for encoder in encoders]
        for repeat in range(arguments.repeats + 1):
            for encoder, features, own in zip(encoders, inputs, times, strict=True):
                for exits, spent in enumerate(own):
                    seconds = clock(lambda e=encoder, f=features, n=exits: stop_at(e, f, n))
                    if repeat:
                        spent.append(seconds)
        medians = [[statistics.median(values) for values in own] for own in times]
        for path, encoder, own in zip(arguments.config, encoders, medians, strict=True):
            print_exits(path, encoder, own, frames, medians[0][-1])
        print_deciding(encoders[-1], inputs[-1], arguments.vocabulary, arguments.repeats)
    if arguments.training:
        time_training(arguments.config, encoders, frames, arguments.repeats)


if __name__ == "__main__":
    run(main)
