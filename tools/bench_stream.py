#!/usr/bin/env python3
"""What a stream costs: the time of a chunk, of a final text, and of it all; chunk by chunk, as a microphone gives it.

    python tools/bench_stream.py --model EXP --audio a.flac b.flac [--chunk_ms 320 640] [--partial_exit 4] [--threads 1]

The files are one stream, with a pause behind each. A line for each chunk length: milliseconds of computing of a chunk that
makes a partial text (median, 95th percentile, longest) and of one that also makes a final (median, longest); the real-time
factor, seconds of computing per second of audio; and the longest time from a sound to a partial text that has heard it: the
chunk, what the features look ahead, and the 95th percentile of computing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from espnet_ee.api import EarlyExitASR
from espnet_ee.data.audio import read_any
from espnet_ee.errors import run

PAUSE_SECONDS = 1.5


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an experiment or a package that was trained for chunks")
    parser.add_argument("--policy", help="how deep final texts go (default: the package's, else the last exit)")
    parser.add_argument("--audio", type=Path, nargs="+", required=True, help="audio files")
    parser.add_argument("--chunk_ms", type=int, nargs="+", default=[320, 640])
    parser.add_argument("--partial_exit", type=int, help="the exit of partial texts (default: the first)")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def measure(asr: EarlyExitASR, samples: np.ndarray, chunk_ms: int, exit_layer: int | None) -> str:
    """A line of the table."""
    stream, size = asr.stream(chunk_ms, exit_layer), asr.sample_rate * chunk_ms // 1000
    partial, final, texts = [], [], 0
    for start in range(0, len(samples), size):
        began = time.perf_counter()
        update = stream.feed(samples[start : start + size])
        spent = 1000 * (time.perf_counter() - began)
        (final if update.finals else partial).append(spent)
        texts += len(update.finals)
    session = stream.session
    ahead = 1000 * session.final_samples(session.chunk) / asr.sample_rate - chunk_ms
    half, most = np.percentile(partial, [50, 95])
    finals = f"{np.median(final):8.2f} {max(final):8.2f}" if final else f"{'-':>8} {'-':>8}"
    rtf = (sum(partial) + sum(final)) / 1000 / (len(samples) / asr.sample_rate)
    heard = chunk_ms + ahead + most
    return f"{chunk_ms:>8} {half:8.2f} {most:8.2f} {max(partial):8.2f} {finals} {texts:>7} {rtf:8.4f} {heard:9.0f}"


def main() -> None:
    """Prints the table."""
    arguments = parse_arguments()
    asr = EarlyExitASR.from_pretrained(arguments.model, arguments.policy, engine="torch")
    asr.session.use_threads(arguments.threads)
    pause = np.zeros(int(PAUSE_SECONDS * asr.sample_rate), np.float32)
    samples = np.concatenate([part for path in arguments.audio for part in (read_any(path, asr.sample_rate)[0], pause)])
    measure(asr, samples[: 10 * asr.sample_rate], arguments.chunk_ms[0], arguments.partial_exit)  # a warm-up
    print(f"{len(samples) / asr.sample_rate:.0f} s of audio, {arguments.threads} thread(s), policy {asr.policy_name}")
    print(
        f"{'chunk ms':>8} {'median':>8} {'95 %':>8} {'longest':>8} {'final':>8} {'longest':>8} {'finals':>7} {'RTF':>8} {'to text':>9}"
    )
    for chunk_ms in arguments.chunk_ms:
        print(measure(asr, samples, chunk_ms, arguments.partial_exit))


if __name__ == "__main__":
    run(main)
