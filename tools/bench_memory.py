#!/usr/bin/env python3
"""Peak memory of transcribing long audio at once: a process for each encoder and length, its largest resident set.

    python tools/bench_memory.py [--config A.yaml B.yaml ...] [--seconds 180 360 600] [--policy_exit N]

Weights are random, for memory does not depend on them; the audio is noise. The last exit is read, which keeps most. "before" is
the resident set with the model loaded, "peak" the largest one until the text is there, "held" that after the call: what a
service would go on to need. Megabytes of 2**20 bytes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from espnet_ee.api import EarlyExitASR
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.errors import UsageError, run
from espnet_ee.files import read_yaml
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.store.build import build_model

CONFIGS = [f"egs/an4/asr1/conf/train_ee_{name}conformer.yaml" for name in ("", "fast_")]
TOKENS = ["<blank>", "<unk>", *(chr(65 + number) for number in range(26)), "<space>", "<sos/eos>"]
RATE = 16000
# What ESPnet's training fills in where a configuration is silent.
DEFAULTS = {
    "frontend": "default", "frontend_conf": {}, "normalize": "utterance_mvn", "normalize_conf": {}, "ctc_conf": {}, "decoder_conf": {},
    **dict.fromkeys(("specaug", "decoder", "input_size", "init", "preencoder", "postencoder")), "token_list": TOKENS,
}  # fmt: skip


def resident() -> float:
    """The resident set of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(path: Path, seconds: float, exit_layer: int | None) -> dict[str, float]:
    """Transcribes noise in this process."""
    config = read_yaml(path, "give a training configuration")
    used = ("encoder", "encoder_conf", "model", "model_conf", "frontend", "frontend_conf", "ctc_conf")
    config = {**DEFAULTS, **{key: config[key] for key in used if key in config}}
    torch.manual_seed(0)
    model = build_model(config, path).eval()
    recogniser = EarlyExitASR(TorchSession(model), RATE)
    if exit_layer is not None:
        recogniser.use(FixedExitPolicy(exit_layer))
    samples = np.random.default_rng(0).standard_normal(round(seconds * RATE)).astype(np.float32) * 0.05
    before, started = resident(), time.perf_counter()
    recogniser.transcribe(samples, RATE)
    took, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"before": before, "peak": peak, "held": resident(), "seconds": took}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, nargs="+", default=[Path(name) for name in CONFIGS], help="training configurations"
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[180.0, 360.0, 600.0], help="lengths of the audio")
    parser.add_argument("--policy_exit", type=int, help="exit layer to stop at (default: the last)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in this process, as JSON
    arguments = parser.parse_args()
    if min(arguments.seconds) <= 0:
        raise UsageError("--seconds: give lengths above 0")
    return arguments


def main() -> None:
    """A line for each configuration and length."""
    arguments = parse_arguments()
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(measure(arguments.config[0], arguments.seconds[0], arguments.policy_exit)))
        return
    print(f"{'configuration':44s} {'audio s':>8s} {'before MB':>10s} {'peak MB':>9s} {'held MB':>9s} {'took s':>8s}")
    for path in arguments.config:
        for seconds in arguments.seconds:
            words = ["--config", str(path), "--seconds", str(seconds), "--threads", str(arguments.threads), "--one"]
            words += ["--policy_exit", str(arguments.policy_exit)] if arguments.policy_exit is not None else []
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
            if done.returncode:
                ending = done.stderr.strip().splitlines()[-1:] or [f"ended by signal {-done.returncode}"]
                print(f"{path!s:44s} {seconds:8.0f} {ending[0]}")
                continue
            figures = json.loads(done.stdout.splitlines()[-1])
            numbers = f"{figures['before']:10.0f} {figures['peak']:9.0f} {figures['held']:9.0f} {figures['seconds']:8.1f}"
            print(f"{path!s:44s} {seconds:8.0f} {numbers}", flush=True)


if __name__ == "__main__":
    run(main)
