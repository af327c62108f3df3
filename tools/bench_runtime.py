#!/usr/bin/env python3
"""What a device pays: start to first text, loading, milliseconds for some seconds of audio at each exit, and memory, by engine.

    python tools/bench_runtime.py --model DIR [--torch DIR ...] [--stock] [--audio a.wav] [--seconds 10] [--repeats 7]
    python tools/bench_runtime.py --model DIR --utterances 5000     # does memory grow? in one process, 1 to 30 s each, all blocks

DIR is a package or an experiment with an export (espnet-ee export --int8 --out DIR). Measured are its fp32 and int8 graphs by ONNX
Runtime; with torch installed DIR itself and those of --torch (another encoder, the plain recipe), with --stock by ESPnet's own
Speech2Text, too (CTC, beam 10, all blocks: give real --audio, for a search takes its time by what it finds); with sherpa-onnx
installed the file that stops by itself. Every engine runs in a process of its own, which is started anew in each repeat, all engines in turn, so
that whatever else the machine does falls on all alike; medians of the repeats are printed. "first text" counts from the start of
the process, interpreter and imports included; "peak" is the largest memory that the process ever held. "deciding" is the share of a
call that goes to reading exits (in torch with their heads, which a graph has inside) and asking the policy: up to where it stops, and
through all blocks as if it never did.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ee.errors import UsageError, UserError, run

PASSES = 5  # of each exit in one process
SHORTEST, LONGEST = 1.0, 30.0  # seconds of the utterances that memory is measured with
TENTHS = 10
BEAM = 10  # of ESPnet's own search, as its recipes have it


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder with an export")
    parser.add_argument("--torch", type=Path, nargs="+", default=[], help="models that torch computes beside it")
    parser.add_argument("--stock", action="store_true", help="torch's models by ESPnet's own inference, too")
    parser.add_argument("--audio", type=Path, help="a file (default: noise)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the noise")
    parser.add_argument("--repeats", type=int, default=7, help="processes of each engine, 3 or more")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--utterances", type=int, help="measure the runtime's memory over so many utterances, and nothing else")
    parser.add_argument("--engine", help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if arguments.repeats < 3:
        raise UsageError("--repeats: a median of fewer than 3 says little; give 3 or more")
    if arguments.utterances is not None and arguments.utterances < 10 * TENTHS:
        raise UsageError(f"--utterances: give {10 * TENTHS} or more")
    return arguments


def clock(work: Any) -> float:
    """Seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def load_audio(path: Path | None, seconds: float, rate: int) -> np.ndarray:
    """Samples (N,) float32 of a file, or noise that rises and falls."""
    if path is not None:
        from espnet_ee.data.audio import read_any

        return read_any(path, rate)[0]
    random = np.random.default_rng(0)
    noise = random.standard_normal(int(seconds * rate)) * 0.05
    return (noise * (1 + np.sin(np.arange(len(noise)) / rate * 9))).astype(np.float32)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """In this process: one engine's times in seconds, by what they are of, and its memory in MB."""
    started = time.perf_counter()
    if arguments.engine == "sherpa":
        return measure_sherpa(arguments, started)
    if arguments.engine == "stock":
        return measure_stock(arguments, started)
    from espnet_ee import EarlyExitASR
    from espnet_ee.policy.fixed import FixedExitPolicy

    engine, int8 = ("torch", None) if arguments.engine == "torch" else ("onnx", arguments.engine == "int8")
    asr = EarlyExitASR.from_pretrained(arguments.model, engine=engine, int8=int8)
    asr.session.use_threads(arguments.threads)
    load = time.perf_counter() - started
    samples = load_audio(arguments.audio, arguments.seconds, asr.sample_rate)
    asr.recognise([samples])
    first, policy = time.monotonic(), asr.config.policy_for(asr.exit_layers)
    times = {"policy " + asr.policy_name: median_of(lambda: asr.recognise([samples]))}
    for layer in asr.exit_layers:
        asr.use(FixedExitPolicy(layer))
        asr.recognise([samples])
        times[f"exit {layer}"] = median_of(lambda: asr.recognise([samples]))
    shares = [[share_of_deciding(asr.session, policy, samples, heard) for _ in range(PASSES)] for heard in (True, False)]
    measured = {"load": load, "first": first, "times": times, "peak": peak(), "seconds": len(samples) / asr.sample_rate}
    return {**measured, "deciding": [statistics.median(of) for of in shares]}


def share_of_deciding(session: Any, policy: Any, samples: np.ndarray, heard: bool) -> float:
    """Of a pass up to where a policy stops, or through all blocks if it is not heard, what goes to reading exits and asking it."""
    from espnet_ee.policy.frames import FrameEvidence

    started, spent, passed = time.perf_counter(), 0.0, []
    state = session.start([samples])
    for layer in session.exit_layers[:-1]:
        state = session.advance(state)
        asked = time.perf_counter()
        [frames] = session.read(state, [0], frozenset())
        passed.append(FrameEvidence(layer, frames, session.blank))
        stops = policy.should_stop(passed)
        spent += time.perf_counter() - asked
        if stops and heard:
            break
    else:
        session.advance(state)
    return spent / (time.perf_counter() - started)


def measure_growth(arguments: argparse.Namespace) -> None:
    """Prints the resident set of this process, over utterances of all lengths through all blocks; the longest comes first."""
    from espnet_ee import EarlyExitASR
    from espnet_ee.policy.fixed import FixedExitPolicy

    int8 = any(export_folder(arguments.model).glob("segment_*.int8.onnx"))
    asr = EarlyExitASR.from_pretrained(arguments.model, engine="onnx", int8=int8)
    asr.session.use_threads(arguments.threads)
    asr.use(FixedExitPolicy(asr.exit_layers[-1]))
    noise, random = load_audio(arguments.audio, LONGEST, asr.sample_rate), np.random.default_rng(0)
    most = min(len(noise), int(LONGEST * asr.sample_rate))
    asr.recognise([noise[:most]])
    means = []
    print(f"{asr.session.precision} {arguments.model}: resident set after the longest utterance {resident():.1f} MB")
    for tenth in range(TENTHS):
        sizes = []
        for _ in range(arguments.utterances // TENTHS):
            length = int(random.uniform(SHORTEST / LONGEST, 1.0) * most)
            asr.recognise([noise[:length]])
            sizes.append(resident())
        means.append(statistics.fmean(sizes))
        print(
            f"  utterances to {(tenth + 1) * len(sizes):>6}: mean {means[-1]:.1f} MB, largest {max(sizes):.1f} MB", flush=True
        )
    print(f"growth from the second tenth to the last: {100 * (means[-1] / means[1] - 1):+.2f} %; peak {peak():.1f} MB")


def resident() -> float:
    """Memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def measure_sherpa(arguments: argparse.Namespace, started: float) -> dict[str, Any]:
    """The same of sherpa-onnx with the file that stops by itself."""
    import sherpa_onnx

    folder = export_folder(arguments.model)
    file = next(path for path in (folder / "self_stopping.int8.onnx", folder / "self_stopping.onnx") if path.is_file())
    recogniser = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
        model=str(file), tokens=str(folder / "tokens.txt"), num_threads=arguments.threads
    )
    load = time.perf_counter() - started
    samples = load_audio(arguments.audio, arguments.seconds, 16000)

    def recognise() -> None:
        stream = recogniser.create_stream()
        stream.accept_waveform(16000, samples)
        recogniser.decode_stream(stream)

    recognise()
    first = time.monotonic()
    times = {file.name: median_of(recognise)}
    return {"load": load, "first": first, "times": times, "peak": peak(), "seconds": len(samples) / 16000}


def measure_stock(arguments: argparse.Namespace, started: float) -> dict[str, Any]:
    """The same of ESPnet's ``Speech2Text``, which knows the model by our plug-in."""
    import torch
    from espnet2.bin.asr_inference import Speech2Text

    from espnet_ee.plugin.register import register
    from espnet_ee.store.checkpoint import experiment_files

    register()
    torch.set_num_threads(arguments.threads)
    config, parameters = experiment_files(arguments.model)
    recogniser = Speech2Text(str(config), str(parameters), ctc_weight=1.0, beam_size=BEAM)
    load = time.perf_counter() - started
    samples = load_audio(arguments.audio, arguments.seconds, 16000)
    recogniser(samples)
    first = time.monotonic()
    times = {f"all blocks, beam {BEAM}": median_of(lambda: recogniser(samples))}
    return {"load": load, "first": first, "times": times, "peak": peak(), "seconds": len(samples) / 16000}


def median_of(work: Any) -> float:
    """Median seconds of some passes."""
    return statistics.median(clock(work) for _ in range(PASSES))


def peak() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform.startswith("linux") else 1 << 20)


def export_folder(model: Path) -> Path:
    return model / "onnx" if (model / "onnx").is_dir() else model


def engines_of(arguments: argparse.Namespace) -> list[tuple[str, Path]]:
    """What can be measured here: engine and model."""
    model, folder = arguments.model, export_folder(arguments.model)
    if not (folder / "model.yaml").is_file():
        raise UserError(f"{model}: holds no export; make one: espnet-ee export --model EXPERIMENT --int8 --out {model}")
    engines = [("fp32", model)] if any(folder.glob("segment_??.onnx")) else []
    engines += [("int8", model)] if any(folder.glob("segment_*.int8.onnx")) else []
    if find_spec("torch"):
        torch_models = ([model] if (model / "config.yaml").is_file() else []) + arguments.torch
        engines += [(engine, path) for path in torch_models for engine in ("torch", "stock")[: 1 + arguments.stock]]
    elif arguments.torch or arguments.stock:
        raise UserError("--torch, --stock: torch is not installed; install it with: pip install 'espnet_ee[espnet]'")
    if find_spec("sherpa_onnx") and any(folder.glob("self_stopping*.onnx")):
        engines.append(("sherpa", model))
    return engines


def start(arguments: argparse.Namespace, engine: str, model: Path) -> dict[str, Any]:
    """One process; adds the seconds from its start to its first text."""
    words = ["--engine", engine, "--model", model, "--seconds", arguments.seconds, "--threads", arguments.threads]
    words += ["--audio", arguments.audio] if arguments.audio else []
    started = time.monotonic()  # one clock for all processes of a machine
    done = subprocess.run([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{engine} of {model}: failed; its own line is above")
    measured = json.loads(done.stdout.splitlines()[-1])
    return {**measured, "first": measured["first"] - started}


def show(engine: str, model: Path, runs: list[dict[str, Any]]) -> None:
    """A line for the process and one for each exit."""
    load, first, memory = (statistics.median(one[key] for one in runs) for key in ("load", "first", "peak"))
    print(f"\n{engine} {model}: loaded in {load:.2f} s, first text after {first:.2f} s, peak {memory:.0f} MB")
    for name in runs[0]["times"]:
        milliseconds = statistics.median(one["times"][name] for one in runs) * 1000
        print(f"  {name:<28} {milliseconds:8.1f} ms for {runs[0]['seconds']:.1f} s of audio, features and text included")
    if "deciding" in runs[0]:
        heard, never = (100 * statistics.median(shares) for shares in zip(*(one["deciding"] for one in runs), strict=True))
        print(
            f"  deciding                     {heard:8.2f} % of a call by the policy, {never:.2f} % if it is asked at every exit"
        )


def main() -> None:
    arguments = parse_arguments()
    if arguments.engine:
        print(json.dumps(measure(arguments)))
        return
    if arguments.utterances is not None:
        measure_growth(arguments)
        return
    engines = engines_of(arguments)
    runs: dict[tuple[str, Path], list[dict[str, Any]]] = {key: [] for key in engines}
    for _ in range(arguments.repeats):
        for key in engines:
            runs[key].append(start(arguments, *key))
    for (engine, model), measured in runs.items():
        show(engine, model, measured)


if __name__ == "__main__":
    run(main)
