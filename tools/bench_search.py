#!/usr/bin/env python3
"""What finding the text costs: milliseconds of CPU time an utterance, by search; one thread, medians.

    python tools/bench_search.py [--vocabulary 256 500] [--seconds 10] [--repeats 15]
    python tools/bench_search.py --model DIR --audio FILE ... [--exit_layer K] [--lm tokens.arpa]

Without a model the posteriors are made: frames of 40 ms, three in four of them nearly surely blank, the others peaks as a trained
model has them, with a random 3-gram of the tokens. With one they are its own.
The N-best list has 10 texts; aligning the best text with the frames, for the words' times, is a line of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from espnet_ee.errors import UsageError, run
from espnet_ee.policy.frames import Frames
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.search.align import align, chain
from espnet_ee.search.arpa import read_words
from espnet_ee.search.beam import BeamSearch, GreedySearch

FRAME_SECONDS, BLANK_SHARE = 0.04, 0.75
BEAM = SearchConfig("beam", 10)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[256, 500], help="tokens of made posteriors")
    parser.add_argument("--seconds", type=float, default=10.0, help="of made audio")
    parser.add_argument("--model", help="package, experiment or export, whose posteriors are taken instead")
    parser.add_argument("--audio", type=Path, nargs="+", default=[], help="with it: files")
    parser.add_argument("--exit_layer", type=int, help="with it: the exit (default: the last)")
    parser.add_argument("--lm", type=Path, help="with it: n-gram model of its tokens")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    if (arguments.model is None) != (not arguments.audio):
        raise UsageError("--model and --audio belong together")
    return arguments


def made_posteriors(seconds: float, vocabulary: int, seed: int = 0) -> np.ndarray:
    """Log-probabilities (T, V) float32: runs of blanks, and peaks of 0.5 to 0.99 with a tail that falls off."""
    random = np.random.default_rng(seed)
    frames = int(seconds / FRAME_SECONDS)
    logits = -random.exponential(2.0, (frames, vocabulary)) - 8.0
    labels = np.where(random.random(frames) < BLANK_SHARE, 0, random.integers(1, vocabulary, frames))
    logits[np.arange(frames), labels] = np.where(labels == 0, 2.0, random.uniform(-1.0, 2.0, frames))
    unsure = labels > 0
    others = random.integers(1, vocabulary, (frames, 3))
    logits[unsure[:, None] & (np.arange(vocabulary) == others[:, :1])] += 5.0
    logits[unsure, 0] = random.uniform(-4.0, 0.0, unsure.sum())
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def made_lm(path: Path, tokens: Sequence[str], seed: int = 0, size: int = 20_000) -> None:
    """A 3-gram of random numbers, with as many bigrams and trigrams."""
    random = np.random.default_rng(seed)
    words = ["<unk>", "<s>", "</s>", *tokens[1:]]
    inner = tokens[1:]
    bigrams = {(inner[a], inner[b]) for a, b in random.integers(0, len(inner), (size, 2))}
    known = sorted(bigrams)
    trigrams = {
        (*known[k], inner[b])
        for k, b in zip(random.integers(0, len(known), size), random.integers(0, len(inner), size), strict=True)
    }
    trigrams = {ngram for ngram in trigrams if ngram[1:] in bigrams}
    lines = ["\\data\\", f"ngram 1={len(words)}", f"ngram 2={len(bigrams)}", f"ngram 3={len(trigrams)}", "", "\\1-grams:"]
    lines += [f"{-2 - random.random():.4f}\t{word}\t-0.3" for word in words] + ["", "\\2-grams:"]
    lines += [f"{-1 - random.random():.4f}\t{' '.join(ngram)}\t-0.3" for ngram in known] + ["", "\\3-grams:"]
    lines += [f"{-random.random():.4f}\t{' '.join(ngram)}" for ngram in sorted(trigrams)] + ["", "\\end\\", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def frames_of(log_probs: np.ndarray) -> Frames:
    """As a session gives them."""
    best = log_probs.max(axis=1)
    return Frames(log_probs.argmax(axis=1), best, best, log_probs.shape[1], log_probs)


def searches(lm: Path | None, tokens: Sequence[str]) -> Iterator[tuple[str, SearchConfig]]:
    """What is measured."""
    yield "beam 10, N-best 10", BEAM
    yield "  width 12", replace(BEAM, width=12.0)
    yield "  blank frames from 0.99 on skipped", replace(BEAM, blank_skip=0.99)
    if lm is not None:
        yield "beam 10 with the n-gram", replace(BEAM, lm=str(lm))
        yield "  width 12", replace(BEAM, lm=str(lm), width=12.0)
        yield "  blank frames from 0.99 on skipped", replace(BEAM, lm=str(lm), blank_skip=0.99)
    words = [token.strip("▁") for token in tokens if not token.startswith("<") and token.strip("▁")]
    longest = sorted(words, key=len, reverse=True)[:10]
    yield f"beam 10 with {len(longest)} hotwords", BEAM.with_hotwords(longest)


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Of some passes, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return 1000 * statistics.median(times)


def measure(
    title: str, tables: Sequence[np.ndarray], tokens: tuple[str, ...], blank: int, lm: Path | None, repeats: int
) -> None:
    """Prints a table: mean over the utterances of each one's median."""
    frames = sum(map(len, tables)) / len(tables)
    print(f"\n{title}: {len(tables)} utterances, {frames:.0f} frames on average, V {len(tokens)}")
    readings = [frames_of(table) for table in tables]

    def show(name: str, of_one: Callable[[int], object]) -> None:
        mean = statistics.fmean(median_ms(lambda place=place: of_one(place), repeats) for place in range(len(tables)))  # type: ignore[misc]
        print(f"  {name:<56} {mean:8.2f} ms", flush=True)

    greedy = GreedySearch(blank)
    show("greedy", lambda place: greedy(readings[place]))
    best = BeamSearch(BEAM, tokens, blank)
    graphs = [chain(found[0][0] if (found := best.nbest(table)) else (), blank) for table in tables]
    show("aligning a text with the frames", lambda place: align(tables[place], graphs[place]))
    for name, config in searches(lm, tokens):
        search = BeamSearch(config, tokens, blank)
        show(name, lambda place, search=search: search.nbest(tables[place]))  # type: ignore[misc]


def main() -> None:
    """Prints what was measured."""
    arguments = parse_arguments()
    if arguments.model is None:
        for vocabulary in arguments.vocabulary:
            tokens = ("<blank>", *(f"▁t{place}" for place in range(1, vocabulary)))
            with tempfile.TemporaryDirectory() as name:
                lm = Path(name) / "lm.arpa"
                made_lm(lm, tokens)
                made = [made_posteriors(arguments.seconds, vocabulary, seed) for seed in range(3)]
                measure(f"made, {arguments.seconds:g} s", made, tokens, 0, lm, arguments.repeats)
        return
    from espnet_ee import EarlyExitASR
    from espnet_ee.data.audio import read_any

    asr = EarlyExitASR.from_pretrained(arguments.model, "fixed")
    layer, tables = arguments.exit_layer or asr.exit_layers[-1], []
    if arguments.lm is not None:
        read_words(arguments.lm)
    for path in arguments.audio:
        state = asr.session.start([read_any(path, asr.sample_rate)[0]])
        while state.layer < layer:
            state = asr.session.advance(state)
        tables.append(asr.session.read(state, [0], frozenset({"log_probs"}))[0].log_probs)
    measure(
        f"{arguments.model}, exit {layer}",
        tables,
        tuple(asr.session.tokens),
        asr.session.blank,
        arguments.lm,
        arguments.repeats,
    )


if __name__ == "__main__":
    run(main)
