#!/usr/bin/env python3
"""K-means of a trained model's own frames, the targets of cluster heads (DAISY, arXiv 2406.05464).

    python tools/cluster_frames.py --model exp/asr_X --model_file exp/asr_X/valid.loss.ave.pth --data dump/raw/train --clusters 100 --out centres.pth

Then the heads are trained on the backbone as it is: a configuration with `model_conf: {exit_clusters: 100, freeze_backbone: true,
exit_terms: {ctc: 1.0, clusters: 1.0}}`, and `--init_param exp/asr_X/valid.loss.ave.pth centres.pth`. The hidden states of the final
exit are taken of as many utterances, evenly chosen, as give --frames.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from espnet_ee.api import EarlyExitASR
from espnet_ee.data.audio import read_any
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.errors import UsageError, UserError, run
from espnet_ee.files import atomic_write
from espnet_ee.kaldi import read_scp
from espnet_ee.model.cluster_heads import CENTRES, MOST_CLUSTERS

ITERATIONS = 30


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the experiment, with config.yaml")
    parser.add_argument("--model_file", type=Path, required=True, help="its parameters")
    parser.add_argument("--data", type=Path, required=True, help="data directory of the training set, with wav.scp")
    parser.add_argument("--clusters", type=int, default=100, help="how many (100)")
    parser.add_argument("--frames", type=int, default=200000, help="frames to take, or all that there are (200000)")
    parser.add_argument("--utterances", type=int, default=2000, help="utterances to take them of, at most (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of k-means' start (0)")
    parser.add_argument("--out", type=Path, required=True, help="file for --init_param")
    arguments = parser.parse_args()
    if not 2 <= arguments.clusters <= MOST_CLUSTERS:
        raise UsageError(f"--clusters {arguments.clusters}: is no number from 2 to {MOST_CLUSTERS}")
    return arguments


def final_frames(session: TorchSession, speech: np.ndarray) -> np.ndarray:
    """Hidden states at the final exit (T, D)."""
    state = session.start([speech])
    while state.layer < session.exit_layers[-1]:
        state = session.advance(state)
    output = state.output
    assert output is not None
    return output.hs[0, : int(output.olens[0])].float().cpu().numpy()


def frames_of(session: TorchSession, rate: int, data: Path, utterances: int) -> Iterator[np.ndarray]:
    """The frames of utterances that lie evenly in the list."""
    paths = list(read_scp(data / "wav.scp").values())
    count = min(utterances, len(paths))
    for number in range(count):
        yield final_frames(session, read_any(paths[number * len(paths) // count], rate)[0])


def cluster(frames: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The centres (K, D) of frames (N, D), by k-means++ and Lloyd's iterations.

    Raises:
        UserError: there are fewer different frames than centres.
    """
    if len(np.unique(frames, axis=0)) < count:
        raise UserError(f"--clusters {count}: there are no more than {len(frames)} frames; take fewer clusters, or more data")
    centres, _ = kmeans2(frames.astype(np.float64), count, iter=ITERATIONS, minit="++", missing="warn", seed=seed)
    return centres


def main() -> None:
    """Writes the centres, whole or not at all."""
    arguments = parse_arguments()
    recogniser = EarlyExitASR.from_files(arguments.model / "config.yaml", arguments.model_file)
    session = recogniser.session
    if not isinstance(session, TorchSession):
        raise UserError(f"{arguments.model}: is no torch model")
    taken, count = [], 0
    for frames in frames_of(session, recogniser.sample_rate, arguments.data, arguments.utterances):
        taken.append(frames)
        count += len(frames)
        if count >= arguments.frames:
            break
    centres = torch.tensor(cluster(np.concatenate(taken)[: arguments.frames], arguments.clusters, arguments.seed)).float()
    with atomic_write(arguments.out, "wb") as stream:
        torch.save({CENTRES: centres}, stream)
    print(f"{arguments.out}: {len(centres)} centres of {min(count, arguments.frames)} frames")


if __name__ == "__main__":
    run(main)
