"""Features in NumPy are those that a model was trained on: of Kaldi, of our torch frontend, of ESPnet's."""

from __future__ import annotations

from typing import Any

import kaldi_native_fbank
import numpy as np
import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend

from espnet_ee.errors import UserError
from espnet_ee.frontend import kaldi_fbank
from espnet_ee.runtime.features import KaldiFbank, LogMel, build_features

LENGTHS = (1, 50, 79, 80, 160, 399, 401, 700, 12345, 16079, 16080)


def noise(length: int) -> np.ndarray:
    """As speech: louder at low frequencies, but not so much that torch's float32 loses the high ones; with a silence."""
    random = np.random.default_rng(length)
    samples = np.convolve(random.normal(0, 0.05, length), 0.8 ** np.arange(20))[:length].astype(np.float32)
    samples[length // 2 : length // 2 + 800] *= 0.01
    return samples.clip(-1, 1)


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("length", LENGTHS)
def test_filter_banks_are_those_of_training(rate: int, length: int) -> None:
    samples = noise(length)
    features, frames = kaldi_fbank.KaldiFbank(rate, 80)(torch.from_numpy(samples)[None], torch.tensor([length]))
    ours = build_features({"kind": "kaldi_fbank", "n_mels": 80}, rate)(samples)
    assert ours.dtype == np.float32 and len(ours) == max(1, int(frames))
    np.testing.assert_allclose(ours, features[0, : len(ours)].numpy(), atol=1e-3)


def test_filter_banks_are_kaldis() -> None:
    samples = noise(16000)
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges = 0, False
    options.mel_opts.num_bins, options.mel_opts.high_freq = 80, -400
    kaldi = kaldi_native_fbank.OnlineFbank(options)
    kaldi.accept_waveform(16000, samples.tolist())
    kaldi.input_finished()
    frames = np.stack([kaldi.get_frame(number) for number in range(kaldi.num_frames_ready)])
    np.testing.assert_allclose(KaldiFbank(16000, 80)(samples), frames, atol=1e-3)


@pytest.mark.parametrize("length", [257, 258, 600, 12345, 16000])
@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"n_fft": 512, "hop_length": 160},
        {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 40, "fmin": 80, "fmax": 7600, "htk": True},
        {"n_fft": 400, "hop_length": 160, "window": "hamming"},
        {"n_fft": 200, "hop_length": 80, "center": False, "n_mels": 20},
    ],
    ids=str,
)
def test_log_mel_is_espnets(conf: dict[str, Any], length: int) -> None:
    samples = noise(length)
    with torch.no_grad():
        features, frames = DefaultFrontend(fs=16000, **conf)(torch.from_numpy(samples)[None], torch.tensor([length]))
    ours = build_features({"kind": "default", "fs": 16000, "win_length": None, "normalized": False, **conf}, 16000)(samples)
    assert ours.dtype == np.float32 and len(ours) == int(frames[0])
    np.testing.assert_allclose(ours, features[0].numpy(), atol=1e-3)


def test_what_is_shorter_than_half_a_window_is_padded_as_torchs_session_pads_it() -> None:
    short = noise(100)
    np.testing.assert_array_equal(LogMel(16000)(short), LogMel(16000)(np.pad(short, (0, 157))))


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        (None, "no table"),
        ({}, "kind None"),
        ({"kind": "mfcc"}, "kind 'mfcc'"),
        ({"kind": "kaldi_fbank", "n_mels": 0}, "size is 0"),
        ({"kind": "kaldi_fbank", "n_mels": 10**9}, "size is 1000000000"),
        ({"kind": "kaldi_fbank", "n_mels": 80, "fs": 8000}, "fs is 8000"),
        ({"kind": "kaldi_fbank", "n_mels": 80, "dither": 1.0}, "dither"),
        ({"kind": "default", "hop_length": True}, "hop_length is True"),
        ({"kind": "default", "win_length": 513}, "win_length is 513"),
        ({"kind": "default", "window": "kaiser"}, "window 'kaiser'"),
        ({"kind": "default", "window": ["hann"]}, "window"),
        ({"kind": "default", "fmax": "high"}, "fmax is 'high'"),
        ({"kind": "default", "log_base": 1.0}, "log_base is 1.0"),
        ({"kind": "default", "normalized": True}, "normalized"),
        ({"kind": "extracted"}, "size"),
        ({"kind": "samples", "fs": 8000}, "fs is 8000"),
        ({"kind": "samples", "fs": True}, "fs is True"),
        ({"kind": "samples", "n_mels": 80}, "size"),
    ],
)
def test_what_has_no_form_here_is_named(conf: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_features(conf, 16000)
