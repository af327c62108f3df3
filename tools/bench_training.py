#!/usr/bin/env python3
"""What a training step costs on this card, or processor: seconds of audio a second, and memory, by the size of the batch.

    python tools/bench_training.py CONFIG.yaml [...] [--device cuda] [--bf16] [--batch_seconds 240 480 960]

The whole model with random weights and noise for speech: frontend, SpecAugment, every exit's head and loss, backward, and an
Adam step. Utterances are of one length, as in a batch sorted by length. Medians; the first configuration is the measure of the
others. What a batch of so many seconds takes of memory says what batch_bins may be: seconds x 16000 for raw audio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from espnet_ee.errors import UsageError, run
from espnet_ee.plugin.task import EarlyExitASRTask

RATE = 16000
CHARACTERS_PER_SECOND, TOKENS_PER_SECOND = 14, 5  # LibriSpeech's, about


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+", help="training configurations")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="mixed precision, as ESPnet's use_amp on such cards")
    parser.add_argument("--batch_seconds", type=float, nargs="+", default=[240.0], help="audio in a batch")
    parser.add_argument("--utterance_seconds", type=float, default=12.0)
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.utterance_seconds > min(arguments.batch_seconds):
        raise UsageError("--batch_seconds: a batch holds one utterance or more")
    return arguments


def make_model(config: Path, vocabulary: int, device: str) -> torch.nn.Module:
    """The model of a training configuration, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.txt"
        tokens.write_text("\n".join(["<blank>", "<unk>", *(f"t{n}" for n in range(vocabulary - 3)), "<sos/eos>"]), "utf-8")
        words = ["--config", str(config), "--token_list", str(tokens), "--output_dir", folder]
        args = EarlyExitASRTask.get_parser().parse_args([*words, "--normalize", "utterance_mvn", "--normalize_conf", "{}"])
        return EarlyExitASRTask.build_model(args).to(device).train()


class Step:
    """One training step on a batch of noise."""

    def __init__(self, model: torch.nn.Module, arguments: argparse.Namespace, seconds: float) -> None:
        utterances, samples = int(seconds / arguments.utterance_seconds), int(arguments.utterance_seconds * RATE)
        rate = TOKENS_PER_SECOND if arguments.vocabulary > 100 else CHARACTERS_PER_SECOND
        labels = int(arguments.utterance_seconds * rate)
        device = arguments.device
        self.model, self.type, self.bf16 = model, torch.device(device).type, arguments.bf16
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
        self.batch = {
            "speech": torch.randn(utterances, samples, device=device) * 0.1,
            "speech_lengths": torch.full((utterances,), samples, device=device),
            "text": torch.randint(2, arguments.vocabulary - 1, (utterances, labels), device=device),
            "text_lengths": torch.full((utterances,), labels, device=device),
        }
        self.seconds = utterances * arguments.utterance_seconds

    def run(self) -> float:
        """Seconds of wall clock."""
        self.wait()
        started = time.perf_counter()
        with torch.autocast(self.type, torch.bfloat16, enabled=self.bf16):
            loss = self.model(**self.batch)[0]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        if self.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Prints a line for each configuration and batch."""
    arguments = parse_arguments()
    cuda = torch.device(arguments.device).type == "cuda"
    card = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"{card}; torch {torch.__version__}; {'bf16' if arguments.bf16 else 'float32'}; V {arguments.vocabulary}")
    print(f"{'batch s':>8} {'ms a step':>10} {'audio s/s':>10} {'of first':>9} {'GB':>6}  configuration")
    measure: dict[float, float] = {}
    for config in arguments.configs:
        model = make_model(config, arguments.vocabulary, arguments.device)
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        for seconds in arguments.batch_seconds:
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                step = Step(model, arguments, seconds)
                spent = statistics.median([step.run() for _ in range(arguments.repeats + 2)][2:])
            except torch.cuda.OutOfMemoryError:
                print(f"{seconds:>8g} {'out of memory':>38}  {config}")
                break
            speed = step.seconds / spent
            first = measure.setdefault(seconds, speed)
            memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if cuda else "-"
            print(
                f"{seconds:>8g} {1000 * spent:>10.1f} {speed:>10.0f} {speed / first:>9.2f} {memory:>6}  {config} ({millions:.1f} M)",
                flush=True,
            )
        del model


if __name__ == "__main__":
    run(main)
