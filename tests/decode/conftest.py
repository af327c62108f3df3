"""A tiny model and utterances for it, which the decoding tests share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import tiny

LENGTHS = (16000, 9000, 24000, 400, 12345, 31000, 7000, 16001, 20000, 5000, 8000, 11111, 28000, 900, 15000, 17000)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny.model(seed=2)


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    """Utterances of mixed lengths and loudness, so that their entropies differ."""
    random = np.random.default_rng(0)
    return [(random.standard_normal(length) * random.uniform(0.01, 0.5)).astype(np.float32) for length in LENGTHS]
