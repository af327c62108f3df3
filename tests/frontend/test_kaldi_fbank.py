"""Filter banks as Kaldi's own, whatever a batch holds besides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from espnet_ee.errors import UsageError
from espnet_ee.frontend.kaldi_fbank import KaldiFbank


def reference(samples: np.ndarray, rate: int, n_mels: int) -> np.ndarray:
    """What kaldi-native-fbank gives, with the settings that sherpa-onnx feeds its models by."""
    library = pytest.importorskip("kaldi_native_fbank", reason="the reference is not installed")
    options = library.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges, options.frame_opts.samp_freq = 0, False, rate
    options.mel_opts.num_bins, options.mel_opts.low_freq, options.mel_opts.high_freq = n_mels, 20, -400
    computer = library.OnlineFbank(options)
    computer.accept_waveform(rate, samples.tolist())
    computer.input_finished()
    return np.array([computer.get_frame(number) for number in range(computer.num_frames_ready)])


def waveform(length: int, seed: int = 0) -> np.ndarray:
    """Noise over a tone, with an offset."""
    noise = 0.05 * np.random.default_rng(seed).standard_normal(length)
    return (noise + 0.3 * np.sin(np.arange(length) / 7) + 0.02).astype(np.float32)


@pytest.mark.parametrize(("rate", "n_mels"), [(16000, 80), (8000, 40), (16000, 23)])
@pytest.mark.parametrize("length", [16000, 12345, 401, 160, 81, 80])
def test_the_features_are_kaldis(rate: int, n_mels: int, length: int) -> None:
    samples = waveform(length)
    features, frames = KaldiFbank(rate, n_mels)(torch.tensor(samples)[None], torch.tensor([length]))
    expected = reference(samples, rate, n_mels)
    assert features.shape == (1, *expected.shape) and frames.tolist() == [len(expected)]
    assert np.abs(features[0].numpy() - expected).max() <= 1e-3


def test_an_utterance_does_not_see_its_neighbours() -> None:
    lengths = torch.tensor([9000, 5000, 300, 40])
    batch = torch.randn(4, 9000, generator=torch.Generator().manual_seed(0))
    frontend = KaldiFbank()
    features, frames = frontend(batch, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, _ = frontend(batch[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0, : frames[row]], features[row, : frames[row]], atol=1e-5, rtol=1e-5)
        assert not features[row, frames[row] :].any()


def test_silence_is_the_floor_and_nothing_is_trained() -> None:
    frontend = KaldiFbank("16k")
    features, _ = frontend(torch.zeros(1, 1600), torch.tensor([1600]))
    assert torch.isfinite(features).all() and features.unique().numel() == 1
    assert not list(frontend.parameters()) and not frontend.state_dict()


@pytest.mark.parametrize("settings", [{"fs": 800}, {"n_mels": 0}, {"n_mels": "80"}])
def test_settings_without_a_band_are_refused(settings: dict) -> None:
    with pytest.raises(UsageError, match="frontend_conf"):
        KaldiFbank(**settings)
