"""Mel filters: as librosa makes them for ESPnet's frontend, bit by bit (librosa takes as long to import as torch), and as Kaldi does."""

from __future__ import annotations

import numpy as np

from espnet_ee.errors import UserError

# Slaney's scale: linear up to 1000 Hz, logarithmic above, 27 mels for a factor of 6.4.
_LINEAR, _KNEE_HERTZ, _STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27.0
_KNEE = _KNEE_HERTZ / _LINEAR
KALDI_LOW, KALDI_BELOW_NYQUIST, KALDI_PREEMPHASIS = 20.0, 400.0, 0.97
"""Where Kaldi's first filter begins and how far below the Nyquist frequency the last one ends, in Hz; the share of the sample before."""


def mel_filters(*, sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float, htk: bool) -> np.ndarray:
    """Triangles of equal area on Slaney's or HTK's mel scale (n_mels, n_fft/2 + 1) float32: ``librosa.filters.mel``.

    Args:
        sr: sampling rate in Hz.
        n_fft: samples of a spectrum.
        n_mels: filters.
        fmin: where the first begins, in Hz.
        fmax: where the last ends, in Hz.
        htk: HTK's scale.

    Raises:
        UserError: there is no spectrum of so few samples, or no rate.
    """
    if n_fft < 1 or sr < 1:
        raise UserError(f"no model can be built from it: frontend_conf: fs is {sr}, n_fft is {n_fft}; give more than 0")
    low, high = (_htk_mel if htk else _slaney_mel)(np.array([fmin, fmax], float))
    edges = _hertz(np.linspace(low, high, n_mels + 2), htk)
    slopes = np.subtract.outer(edges, np.fft.rfftfreq(n_fft, 1.0 / sr))
    widths = np.diff(edges)[:, None]
    filters = np.maximum(0, np.minimum(-slopes[:-2] / widths[:-1], slopes[2:] / widths[1:])).astype(np.float32)
    filters *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return filters


def _htk_mel(hertz: np.ndarray) -> np.ndarray:
    return 2595.0 * np.log10(1.0 + hertz / 700.0)


def _slaney_mel(hertz: np.ndarray) -> np.ndarray:
    above = _KNEE + np.log(np.maximum(hertz, _KNEE_HERTZ) / _KNEE_HERTZ) / _STEP
    return np.where(hertz >= _KNEE_HERTZ, above, hertz / _LINEAR)


def _hertz(mels: np.ndarray, htk: bool) -> np.ndarray:
    if htk:
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    return np.where(mels >= _KNEE, _KNEE_HERTZ * np.exp(_STEP * (mels - _KNEE)), _LINEAR * mels)


def kaldi_filters(count: int, n_fft: int, rate: int) -> np.ndarray:
    """Triangles on the mel scale (n_fft/2 + 1, count) float32, as Kaldi's ``MelBanks``: HTK's scale; the Nyquist bin is not used."""

    def mel(frequency: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log(1.0 + frequency / 700.0)

    low, high = mel(np.array([KALDI_LOW, rate / 2 - KALDI_BELOW_NYQUIST]))
    step = (high - low) / (count + 1)
    bins = mel(np.arange(n_fft // 2) * (rate / n_fft))[:, None]
    left = low + step * np.arange(count)
    filters = np.minimum((bins - left) / step, (left + 2 * step - bins) / step).clip(min=0)
    return np.pad(filters, ((0, 1), (0, 0))).astype(np.float32)
