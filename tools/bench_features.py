#!/usr/bin/env python3
"""How fast features are extracted, beside the bare computation of the frontend: hours of audio per core-minute.

    python tools/bench_features.py [--data_dir data/train] [--minutes 20] [--repeats 3] [--factor 10]

Without --data_dir a corpus of noise is made in a temporary folder. Both are timed in turn in one process, by processor
time, so that whatever else the machine does falls on neither. Then the peak memory of an extraction is measured in fresh
processes over the corpus and over one FACTOR times as large: it must not grow with the corpus.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from espnet_ee.data.audio import read_audio, write_flac
from espnet_ee.data.clip import Clip
from espnet_ee.data.datadir import read_data_dir
from espnet_ee.data.draft import new_data_dir
from espnet_ee.data.features import build_frontend, extract_features, read_frontend
from espnet_ee.errors import run

RATE = 16000
SECONDS = 12.0
"""The mean length of LibriSpeech's training utterances."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="data directory to extract (noise)")
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes of noise")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--factor", type=int, default=10, help="how much larger the corpus of the memory check is; 0: none")
    parser.add_argument("--peak_memory_of", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_noise(folder: Path, minutes: float) -> Path:
    """A data directory of utterances of 12 s."""
    random = np.random.default_rng(0)
    count = max(1, round(minutes * 60 / SECONDS))
    ids = [f"u{number:05d}" for number in range(count)]
    for utt_id in ids:
        # Smoothed, so that FLAC packs it about as speech: decoding white noise costs twice as much.
        samples = np.convolve(random.normal(0, 1000, int(SECONDS * RATE)), np.ones(16) / 4, "same").astype(np.int16)
        write_flac(folder / "audio" / f"{utt_id}.flac", samples, RATE)
    return write_tables(folder / "data", {utt_id: str(folder / "audio" / f"{utt_id}.flac") for utt_id in ids})


def write_tables(out: Path, wavs: dict[str, str]) -> Path:
    """A data directory of these files, with text and speakers made up."""
    with new_data_dir(out) as draft:
        made_up = {"text": dict.fromkeys(wavs, "X"), "utt2spk": dict.fromkeys(wavs, "u")}
        draft.tables.update({"wav.scp": wavs, **made_up})
    return out


def bare_seconds(clips: list[Clip]) -> float:
    """Processor time of ESPnet's frontend alone, as a model calls it, the audio being in memory."""
    import torch

    torch.set_num_threads(1)
    frontend = build_frontend(yaml.safe_dump(read_frontend(None)))
    seconds = 0.0
    for clip in clips:
        samples = torch.from_numpy(read_audio(clip.path, clip.span)[0])
        started = time.process_time()
        with torch.inference_mode():
            frontend(samples[None], torch.tensor([len(samples)]))
        seconds += time.process_time() - started
    return seconds


def extraction_seconds(data_dir: Path, out: Path) -> float:
    """Processor time of ``extract_features``: reading, computing, writing."""
    started = time.process_time()
    extract_features(data_dir, out)
    return time.process_time() - started


def peak_megabytes(data_dir: Path) -> float:
    """Peak memory of an extraction, in a process of its own."""
    command = [sys.executable, __file__, "--peak_memory_of", str(data_dir)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def repeated(data_dir: Path, out: Path, factor: int) -> Path:
    """The same files under ``factor`` times as many names."""
    wavs = read_data_dir(data_dir, "raw").clips()
    return write_tables(out, {f"{utt_id}-{n}": clip.path for utt_id, clip in wavs.items() for n in range(factor)})


def main() -> None:
    """Prints both rates and their quotient, then the two peaks."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.peak_memory_of:
            extract_features(arguments.peak_memory_of, folder / "out")
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            return
        data_dir = arguments.data_dir or make_noise(folder, arguments.minutes)
        clips = list(read_data_dir(data_dir, "raw").clips().values())
        hours = sum(len(read_audio(clip.path, clip.span)[0]) for clip in clips) / RATE / 3600
        bare_seconds(clips[:2])  # warm-up: imports, the filter bank
        bare, whole = [], []
        for _ in range(arguments.repeats):
            bare.append(bare_seconds(clips))
            whole.append(extraction_seconds(data_dir, folder / "out"))
        rates = [hours / (statistics.median(values) / 60) for values in (bare, whole)]
        print(f"{hours:.2f} h of audio, median of {arguments.repeats}, hours of audio per core-minute")
        print(f"frontend alone   {rates[0]:8.2f}")
        print(f"extract_features {rates[1]:8.2f}   {rates[1] / rates[0]:.2f} of it")
        if arguments.factor:
            larger = repeated(data_dir, folder / "larger", arguments.factor)
            peaks = peak_megabytes(data_dir), peak_megabytes(larger)
            print(f"peak memory {peaks[0]:.0f} MB; over a corpus {arguments.factor} times as large {peaks[1]:.0f} MB")


if __name__ == "__main__":
    run(main)
