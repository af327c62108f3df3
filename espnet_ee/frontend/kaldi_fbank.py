"""``frontend: kaldi_fbank``: log mel filter banks as Kaldi computes them, for a batch.

An exported model can then be fed by any runtime that has Kaldi's features (sherpa-onnx, kaldi-native-fbank). As those:
25 ms every 10 ms, no cut edges, no dither, offset removed, preemphasis 0.97, povey window, power spectrum, 20 Hz to 400 Hz
below the Nyquist frequency, samples in [-1, 1].
"""

from __future__ import annotations

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend

from espnet_ee.errors import UsageError
from espnet_ee.host.mel import KALDI_BELOW_NYQUIST, KALDI_LOW, KALDI_PREEMPHASIS, kaldi_filters
from espnet_ee.host.rate import parse_rate
from espnet_ee.values import is_whole

_FLOOR = torch.finfo(torch.float32).eps


class KaldiFbank(AbsFrontend):
    """Log mel filter banks (B, T, n_mels) of waveforms; a frame never depends on what an utterance is batched with.

    Args:
        fs: sampling rate in Hz, or ``"16k"``.
        n_mels: filters.

    Example:
        >>> features, lengths = KaldiFbank()(torch.zeros(2, 16000), torch.tensor([16000, 8000]))
        >>> tuple(features.shape), lengths.tolist()
        ((2, 100, 80), [100, 50])
    """

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, fs: int | str = 16000, n_mels: int = 80) -> None:
        super().__init__()
        try:
            rate = parse_rate(fs)
        except ValueError:
            rate = 0
        if rate / 2 - KALDI_BELOW_NYQUIST <= KALDI_LOW or not is_whole(n_mels):
            raise UsageError(f"frontend_conf: fs {fs!r} and n_mels {n_mels!r}: give a rate above 840 Hz and a filter or more")
        self.width, self.hop_length, self.n_mels = rate * 25 // 1000, rate // 100, n_mels
        self.n_fft = 1 << (self.width - 1).bit_length()
        # No buffers of the model: they follow from the configuration, and a checkpoint need not hold them.
        self.register_buffer("window", povey_window(self.width), persistent=False)
        self.register_buffer("filters", torch.from_numpy(kaldi_filters(n_mels, self.n_fft, rate)), persistent=False)

    def output_size(self) -> int:
        """Features of a frame."""
        return self.n_mels

    def forward(self, input: torch.Tensor, input_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of waveforms.

        Args:
            input: samples (B, N) in [-1, 1].
            input_lengths: real samples (B,).

        Returns:
            Features (B, T, n_mels), zeros where an utterance is padded, and real frames (B,): one for every 10 ms begun.
        """
        frames = self.frames_of(input_lengths)
        longest = max(1, int(frames.max()))
        strips = self.reflected(input.float(), input_lengths, longest).unfold(1, self.width, self.hop_length)
        strips = strips - strips.mean(dim=-1, keepdim=True)
        before = torch.cat([strips[..., :1], strips[..., :-1]], dim=-1)
        spectrum = torch.fft.rfft((strips - KALDI_PREEMPHASIS * before) * self.window, n=self.n_fft)
        power = spectrum.real.square() + spectrum.imag.square()
        features = (power @ self.filters).clamp(min=_FLOOR).log()
        padded = torch.arange(longest, device=features.device) >= frames[:, None]
        return features.masked_fill(padded[..., None], 0.0), frames

    def reflected(self, samples: torch.Tensor, lengths: torch.Tensor, frames: int) -> torch.Tensor:
        """The stretch (B, .) that so many frames lie in: at both ends of an utterance its own samples come back in reverse."""
        start = self.hop_length // 2 - self.width // 2
        places = torch.arange(start, start + (frames - 1) * self.hop_length + self.width, device=samples.device)
        ends = lengths[:, None].clamp(min=1)
        # Back and forth as often as it takes: an utterance may be shorter than a frame.
        places = places.remainder(2 * ends)
        places = torch.where(places < ends, places, 2 * ends - 1 - places)
        return samples.gather(1, places)

    def frames_of(self, lengths: torch.Tensor) -> torch.Tensor:
        """Frames of so many samples (B,)."""
        return torch.div(lengths + self.hop_length // 2, self.hop_length, rounding_mode="floor")

    def final_samples(self, frames: int) -> int:
        """Samples after which so many frames stay as they are, whatever comes: that many lie in the frames alone."""
        return (frames - 1) * self.hop_length + self.hop_length // 2 - self.width // 2 + self.width

    @property
    def min_samples(self) -> int:
        """Samples of the shortest utterance that has a frame."""
        return self.hop_length - self.hop_length // 2


def povey_window(width: int) -> torch.Tensor:
    """Kaldi's own window (width,): Hann's to the power of 0.85."""
    return torch.hann_window(width, periodic=False, dtype=torch.float64).pow(0.85).float()
