#!/usr/bin/env python3
"""What an export gives beside the torch model that it was made of: texts and error rates of every exit, in 32 and 8 bits.

    python tools/compare_engines.py --model exp/asr_X --model_file exp/asr_X/valid.cer_exit12.ave.pth --export DIR --data dump/raw/test \
        [--policy FILE.yaml]

DIR is what `espnet-ee export --int8 --out DIR` wrote; the data directory has wav.scp and text. With a policy, which should be the one that
was exported, also where each utterance stops, and the same of the file that stops by itself, alone and in batches. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from espnet_ee.api import EarlyExitASR
from espnet_ee.data.audio import read_any
from espnet_ee.decode.loop import recognise
from espnet_ee.decode.recognition import Recognition
from espnet_ee.errors import UserError, run
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.frames import spoken_tokens
from espnet_ee.score.wer import add_counts, count_edits
from espnet_ee.text import tokens_to_text

ENGINES = ("torch", "fp32", "int8")
SELF_STOPPING = {"fp32": "self_stopping.onnx", "int8": "self_stopping.int8.onnx"}
BATCHES = (1, 8)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the experiment, with config.yaml")
    parser.add_argument("--model_file", type=Path, required=True, help="the parameters that were exported")
    parser.add_argument("--export", type=Path, required=True, help="folder that holds onnx/")
    parser.add_argument("--data", type=Path, required=True, help="data directory")
    parser.add_argument("--policy", type=Path, help="decoding configuration")
    return parser.parse_args()


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """In per cent."""
    return add_counts(count_edits(list(zip(references, hypotheses, strict=True)), "word")).rate


def equal(texts: Sequence[str], others: Sequence[str]) -> str:
    """How many are the same, of how many."""
    return f"{sum(a == b for a, b in zip(texts, others, strict=True))} of {len(texts)}"


def stopped_by_itself(session: Any, file: Path, speech: Sequence[np.ndarray], size: int) -> list[tuple[str, int]]:
    """Text and exit of every utterance, in batches of this size, by the file that stops by itself."""
    graph, results = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]), []
    for start in range(0, len(speech), size):
        taken = [session.features(samples) for samples in speech[start : start + size]]
        features, lengths = ([values[name].numpy()[0] for values in taken] for name in ("x", "x_lens"))
        longest = max(map(len, features))
        padded = np.stack([np.pad(frames, ((0, longest - len(frames)), (0, 0))) for frames in features])
        outputs = graph.run(["log_probs", "lens", "exit_layer"], {"x": padded, "x_lens": np.array(lengths)})
        for table, count, layer in zip(*outputs, strict=True):
            tokens, _ = spoken_tokens(table[:count].argmax(axis=-1), table[:count].max(axis=-1), session.blank)
            results.append((tokens_to_text([session.tokens[token] for token in tokens], session.token_type), int(layer)))
    return results


def main() -> None:
    """Prints a line for each exit, and for the policy."""
    arguments = parse_arguments()
    engines = {
        "torch": EarlyExitASR.from_files(arguments.model / "config.yaml", arguments.model_file),
        "fp32": EarlyExitASR.from_pretrained(arguments.export, engine="onnx", int8=False),
        "int8": EarlyExitASR.from_pretrained(arguments.export, engine="onnx", int8=True),
    }
    policy = None if arguments.policy is None else DecodingConfig.read(arguments.policy)
    texts, paths = read_scp(arguments.data / "text", allow_empty=True), read_scp(arguments.data / "wav.scp")
    if set(texts) != set(paths):
        raise UserError(f"{arguments.data}: text and wav.scp are of other utterances")
    references, exits = list(texts.values()), engines["torch"].exit_layers
    said = {name: {layer: list[str]() for layer in exits} for name in ENGINES}
    stopped = {name: list[Recognition]() for name in ENGINES}
    speech = list[np.ndarray]()
    for utterance in texts:
        samples, _ = read_any(paths[utterance], engines["torch"].sample_rate)
        speech.append(samples)
        for name, asr in engines.items():
            [result] = recognise(asr.session, DecodingConfig(), [samples], keep_every_exit=True)
            for row in result.rows:
                said[name][row.evidence.layer].append(row.hypothesis)
            if policy is not None:
                stopped[name] += recognise(asr.session, policy, [samples])
    print(
        f"|{len(references)} utterances|WER % torch|WER % fp32|WER % int8|same texts fp32|same texts int8|\n|---|---:|---:|---:|---:|---:|"
    )
    rows = {f"exit {layer}": {name: said[name][layer] for name in ENGINES} for layer in exits}
    if policy is not None:
        rows[arguments.policy.stem.removeprefix("decode_")] = {name: [r.text for r in stopped[name]] for name in ENGINES}
    for title, own in rows.items():
        rates = "|".join(f"{word_error_rate(references, own[name]):.2f}" for name in ENGINES)
        print(f"|{title}|{rates}|{equal(own['torch'], own['fp32'])}|{equal(own['torch'], own['int8'])}|")
    if policy is not None:
        layers = {name: [str(r.exit_layer) for r in stopped[name]] for name in ENGINES}
        print(f"\nSame exit: fp32 {equal(layers['torch'], layers['fp32'])}, int8 {equal(layers['torch'], layers['int8'])}.\n")
        known = [r.text for r in stopped["torch"]]
        for name, file in SELF_STOPPING.items():
            for size in BATCHES:
                found = stopped_by_itself(engines[name].session, arguments.export / "onnx" / file, speech, size)
                texts_found, exits_found = [text for text, _ in found], [str(layer) for _, layer in found]
                print(
                    f"{file} in batches of {size}: same texts {equal(known, texts_found)}, same exits "
                    f"{equal(layers['torch'], exits_found)}, WER {word_error_rate(references, texts_found):.2f} %."
                )


if __name__ == "__main__":
    run(main)
