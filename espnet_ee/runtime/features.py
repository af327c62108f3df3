"""The features of an exported model in NumPy: Kaldi's filter banks, the log mel of ESPnet's DefaultFrontend, or samples as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.host.mel import KALDI_BELOW_NYQUIST, KALDI_LOW, KALDI_PREEMPHASIS, kaldi_filters, mel_filters
from espnet_ee.values import is_number, is_whole

_KALDI_FLOOR = float(np.finfo(np.float32).eps)
_ESPNET_FLOOR = 1e-10
_AT_A_TIME = 128
MAX_RATE, MAX_FFT, MAX_MELS = 200_000, 16384, 1024


Strips = Callable[[int, int, np.ndarray], None]


class Features(Protocol):
    """What an exported model takes.

    Attributes:
        size: features of a frame.
        takes_audio: whether they are made of samples; otherwise an utterance is an array of them.
    """

    @property
    def size(self) -> int: ...

    @property
    def takes_audio(self) -> bool: ...

    def __call__(self, utterance: np.ndarray) -> np.ndarray:
        """Features (L, size) float32 of samples (N,) in [-1, 1], or of features as they are."""


@dataclass(frozen=True)
class StoredFeatures:
    """For a model trained on extracted features: they come in as they are."""

    size: int
    takes_audio = False

    def __call__(self, utterance: np.ndarray) -> np.ndarray:
        return utterance.astype(np.float32)


@dataclass(frozen=True)
class Samples:
    """For a model that takes samples as they are; a frame is one of them.

    Args:
        fs: sampling rate in Hz.
    """

    fs: int
    size = 1
    takes_audio = True

    def __call__(self, utterance: np.ndarray) -> np.ndarray:
        return utterance.astype(np.float32)[:, None]


@dataclass(frozen=True)
class KaldiFbank:
    """Log mel filter banks as Kaldi computes them; see ``espnet_ee.frontend.kaldi_fbank``, which a training uses.

    Args:
        fs: sampling rate in Hz.
        size: filters.

    >>> KaldiFbank(16000, 80)(np.zeros(16000, np.float32)).shape
    (100, 80)
    """

    fs: int
    size: int = 80
    takes_audio = True

    def __call__(self, utterance: np.ndarray) -> np.ndarray:
        width, hop = self.fs * 25 // 1000, self.fs // 100
        count = (len(utterance) + hop // 2) // hop
        if count == 0:  # half of a step is no frame: torch's session makes one of zeros of it, too
            return np.zeros((1, self.size), np.float32)
        before, length = width // 2 - hop // 2, (count - 1) * hop + width
        # At both ends the utterance's own samples come back in reverse, as often as it takes.
        after = max(0, length - before - len(utterance))
        samples = np.pad(utterance.astype(np.float64), (before, after), mode="symmetric")[:length]
        return _log_banks(self._emphasised(samples, width, hop), (count, width), self._n_fft, self._filters, _KALDI_FLOOR)

    def _emphasised(self, samples: np.ndarray, width: int, hop: int) -> Strips:
        """Frames less their mean, pre-emphasised, under the window.

        All of this is linear, so the long signal is emphasised at once, and what a frame's mean has left in it, the same at all of
        its samples, goes with the window.
        """
        rest = 1.0 - KALDI_PREEMPHASIS
        strips, emphasised = _strips(samples, width, hop), np.empty_like(samples)
        emphasised[0] = 0.0  # no frame reads it: its first sample has none before it
        np.subtract(samples[1:], KALDI_PREEMPHASIS * samples[:-1], out=emphasised[1:])
        smooth, means = _strips(emphasised, width, hop), strips @ np.full(width, 1.0 / width)

        def write(first: int, last: int, out: np.ndarray) -> None:
            np.subtract(smooth[first:last], rest * means[first:last, None], out=out)
            out[:, 0] = rest * (strips[first:last, 0] - means[first:last])
            out *= self._window

        return write

    @property
    def _n_fft(self) -> int:
        return 1 << (self.fs * 25 // 1000 - 1).bit_length()

    @cached_property
    def _window(self) -> np.ndarray:
        return np.hanning(self.fs * 25 // 1000) ** 0.85

    @cached_property
    def _filters(self) -> np.ndarray:
        return kaldi_filters(self.size, self._n_fft, self.fs)


@dataclass(frozen=True)
class LogMel:
    """The log mel filter banks of ESPnet's DefaultFrontend; the attributes are its options.

    >>> LogMel(16000, n_fft=512, hop_length=128)(np.zeros(16000, np.float32)).shape
    (126, 80)
    """

    fs: int
    n_fft: int = 512
    win_length: int | None = None
    hop_length: int = 128
    window: str | None = "hann"
    center: bool = True
    size: int = 80
    fmin: float | None = None
    fmax: float | None = None
    htk: bool = False
    log_base: float | None = None
    takes_audio = True

    def __call__(self, utterance: np.ndarray) -> np.ndarray:
        half = self.n_fft // 2
        samples = utterance.astype(np.float64)
        # Half a window is reflected at both ends: shorter audio cannot be, and is padded as torch's session pads it.
        samples = np.pad(samples, (0, max(0, half + 1 - len(samples))))
        if self.center:
            samples = np.pad(samples, half, mode="reflect")
        samples = np.pad(samples, (0, max(0, self.n_fft - len(samples))))
        strips = _strips(samples, self.n_fft, self.hop_length)

        def write(first: int, last: int, out: np.ndarray) -> None:
            np.multiply(strips[first:last], self._window, out=out)

        features = _log_banks(write, strips.shape, self.n_fft, self._filters, _ESPNET_FLOOR)
        return features if self.log_base is None else features / np.float32(math.log(self.log_base))

    @cached_property
    def _window(self) -> np.ndarray:
        width = self.win_length or self.n_fft
        window = _WINDOWS[self.window or "ones"](width + 1)[:width]  # periodic, as torch's
        left = (self.n_fft - width) // 2
        return np.pad(window, (left, self.n_fft - width - left))

    @cached_property
    def _filters(self) -> np.ndarray:
        high = self.fs / 2 if self.fmax is None else self.fmax
        filters = mel_filters(sr=self.fs, n_fft=self.n_fft, n_mels=self.size, fmin=self.fmin or 0.0, fmax=high, htk=self.htk)
        return filters.T


_WINDOWS: dict[str, Callable[[int], np.ndarray]] = {
    "hann": np.hanning,
    "hamming": np.hamming,
    "blackman": np.blackman,
    "bartlett": np.bartlett,
    "ones": np.ones,
}


def _strips(samples: np.ndarray, width: int, hop: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(samples, width)[::hop]


def _log_banks(write: Strips, shape: tuple[int, ...], n_fft: int, filters: np.ndarray, floor: float) -> np.ndarray:
    """Log filter banks (count, size) of frames, so many at a time as stay in the cache: several times as fast.

    In float64 up to the spectrum: NumPy transforms it faster than float32.

    Args:
        write: puts the frames from a first to a last one into an array (last - first, width).
        shape: how many frames there are, and their width, n_fft at most.
    """
    count, width = shape
    banks = np.empty((count, filters.shape[1]), np.float32)
    twice = np.repeat(filters, 2, axis=0)  # for the squares of real and imaginary parts as they lie in memory
    for first in range(0, count, _AT_A_TIME):
        last = min(first + _AT_A_TIME, count)
        frames = np.zeros((last - first, n_fft))
        write(first, last, frames[:, :width])
        parts = np.fft.rfft(frames).view(np.float64)
        np.matmul(np.square(parts, out=parts).astype(np.float32), twice, out=banks[first:last])
    return np.log(np.maximum(banks, np.float32(floor)))


def build_features(conf: Any, rate: int) -> Features:
    """What the ``features`` of a ``model.yaml`` describe: ``kind``, and that kind's numbers.

    Raises:
        UserError: the kind is unknown, or a number is missing, unknown or beyond reason.
    """
    if not isinstance(conf, Mapping):
        raise UserError("features: no table; export again")
    kind = conf.get("kind")
    options = {("size" if key == "n_mels" else key): value for key, value in conf.items() if key != "kind"}
    try:
        if kind == "extracted":
            return StoredFeatures(**_checked(options, {"size": MAX_MELS}))
        if options.setdefault("fs", rate) != rate:
            raise ValueError(f"fs is {options['fs']}, not the model's {rate}")
        if kind == "samples":
            return Samples(**_checked(options, {"fs": MAX_RATE}))
        if kind == "kaldi_fbank":
            made = KaldiFbank(**_checked(options, {"fs": MAX_RATE, "size": MAX_MELS}))
            if made.fs / 2 - KALDI_BELOW_NYQUIST <= KALDI_LOW:
                raise ValueError(f"fs is {made.fs}; more than 840 Hz were due")
            return made
        if kind == "default":
            return _log_mel(options)
    except (TypeError, ValueError) as error:
        raise UserError(f"features: {error}; update espnet_ee, or export again") from None
    raise UserError(f"features: kind {kind!r} is unknown here; update espnet_ee, or export again")


def _log_mel(options: dict[str, Any]) -> LogMel:
    if options.pop("normalized", False) or not options.pop("onesided", True):
        raise ValueError("normalized and two-sided spectra have no form here")
    made = LogMel(**_checked(options, {"fs": MAX_RATE, "n_fft": MAX_FFT, "hop_length": MAX_FFT, "size": MAX_MELS}))
    if made.window is not None and (not isinstance(made.window, str) or made.window not in _WINDOWS):
        raise ValueError(f"window {made.window!r} is none of {', '.join(_WINDOWS)}")
    if made.win_length is not None:
        _checked({"win_length": made.win_length}, {"win_length": made.n_fft})
    for name in ("fmin", "fmax", "log_base"):
        value = getattr(made, name)
        if value is not None and not is_number(value, 0, MAX_RATE):
            raise ValueError(f"{name} is {value!r}")
    if made.log_base is not None and not made.log_base > 1:
        raise ValueError(f"log_base is {made.log_base!r}")
    return made


def _checked(options: dict[str, Any], limits: Mapping[str, int]) -> dict[str, Any]:
    """The options, of which those with a limit are whole numbers from 1 to it."""
    for name, most in limits.items():
        value = options.get(name, 1)
        if not is_whole(value, most=most):
            raise ValueError(f"{name} is {value!r}; a whole number from 1 to {most} was due")
    return options
