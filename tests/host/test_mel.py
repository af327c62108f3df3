"""Mel filters without librosa are librosa's."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.host.mel import mel_filters


def expected(**options: object) -> np.ndarray:
    with np.errstate(all="ignore"):
        return librosa.filters.mel(**options)


@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize("sr", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("n_fft", [256, 400, 512, 1024])
@pytest.mark.parametrize("n_mels", [23, 40, 80])
@pytest.mark.parametrize("htk", [False, True])
def test_every_bit_is_librosas(sr: int, n_fft: int, n_mels: int, htk: bool) -> None:
    for fmin, fmax in ((0, sr / 2), (20, sr / 2 - 400), (60.5, 3800), (1000, 2000)):
        options = {"sr": sr, "n_fft": n_fft, "n_mels": n_mels, "fmin": fmin, "fmax": fmax, "htk": htk}
        own = mel_filters(**options)
        assert own.dtype == np.float32 and own.flags["C_CONTIGUOUS"]
        assert own.tobytes() == expected(**options).tobytes()


@pytest.mark.filterwarnings("ignore:Empty filters")
@settings(deadline=None, max_examples=50)
@given(st.integers(2000, 96000), st.integers(16, 2048), st.integers(1, 128), st.floats(0, 900), st.booleans())
def test_so_it_is_of_any_settings(sr: int, n_fft: int, n_mels: int, fmin: float, htk: bool) -> None:
    options = {"sr": sr, "n_fft": n_fft, "n_mels": n_mels, "fmin": fmin, "fmax": sr / 2, "htk": htk}
    assert mel_filters(**options).tobytes() == expected(**options).tobytes()
