"""What is said before a training of units that cannot be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from espnet_ee.data.datadir import read_data_dir
from espnet_ee.data.tokens import make_tokens
from espnet_ee.data.units import (
    SUBSAMPLING,
    convolutions,
    feature_frames,
    frames_needed,
    subsampled,
    subsampling,
    unit_warnings,
)
from espnet_ee.errors import UserError
from espnet_ee.model import ctc
from tests import tiny

FRONTEND = {"frontend": "kaldi_fbank", "frontend_conf": {"fs": 8000}}
FAST = {"encoder": "early_exit_fast_conformer", "encoder_conf": {"subsampling": 8}}


@pytest.fixture
def spoken(data_dir: Path) -> Path:
    """Three utterances of 100, 30 and 8 frames."""
    (data_dir / "utt2num_samples").write_text("a-1 8000\na-2 2400\nb-1 640\n")
    (data_dir / "text").write_text("a-1 YES\na-2 NOO\nb-1 GO\n")
    return data_dir


LAYERS = [(layer, False) for layer in SUBSAMPLING if layer != "early_exit_hf"]


@pytest.mark.parametrize(("layer", "chunks"), [*LAYERS, ("4", True), ("6", True), ("8", True)])
def test_frames_are_those_of_the_encoders(layer: str, chunks: bool) -> None:
    if layer.isdigit():
        conf: dict[str, Any] = {"subsampling": int(layer), "chunk_range": [2, 6] if chunks else []}
        config: dict[str, Any] = {"encoder": "early_exit_fast_conformer", "encoder_conf": conf}
        from espnet_ee.encoder.fast_conformer import EarlyExitFastConformerEncoder

        made = EarlyExitFastConformerEncoder(80, [1], output_size=8, attention_heads=2, num_blocks=1, **conf)
    else:
        config = {"encoder": "early_exit_e_branchformer", "encoder_conf": {"input_layer": layer}}
        made = tiny.encoder([1], backbone="e_branchformer", num_blocks=1, input_layer=layer)
    lengths = torch.arange(1, 60)
    expected = made.frames_of(lengths).tolist()
    layers = convolutions(config)
    assert layers is not None and [subsampled(length, layers) for length in lengths.tolist()] == expected


def test_samples_are_what_a_pretrained_encoder_counts(spoken: Path) -> None:
    """400 of them make a frame, and 320 each further one; a frontend of the configuration is none of its."""
    config = {"encoder": "early_exit_hf", **FRONTEND}
    layers = SUBSAMPLING[subsampling(config)]
    assert [subsampled(samples, layers) for samples in (399, 400, 719, 720, 16000)] == [0, 1, 1, 2, 49]
    assert feature_frames(read_data_dir(spoken), config) == {"a-1": 8000, "a-2": 2400, "b-1": 640}


def test_feature_frames_are_those_of_the_frontends(spoken: Path) -> None:
    from espnet2.asr.frontend.default import DefaultFrontend

    from espnet_ee.frontend.kaldi_fbank import KaldiFbank

    data = read_data_dir(spoken)
    lengths = torch.tensor([8000, 2400, 640])
    for name, conf, made in (
        ("kaldi_fbank", {}, KaldiFbank(fs=8000)),
        ("default", {}, DefaultFrontend(fs=8000)),
        ("default", {"hop_length": 80}, DefaultFrontend(fs=8000, hop_length=80)),
    ):
        counts = feature_frames(data, {"frontend": name, "frontend_conf": {"fs": 8000, **conf}})
        assert counts is not None and [*counts.values()] == made(torch.randn(3, 8000), lengths)[1].tolist()
    assert feature_frames(data, {"frontend": "s3prl", "frontend_conf": {"fs": 8000}}) is None
    assert feature_frames(data, {"frontend": "default", "frontend_conf": {"fs": "8k"}}) is None


@given(text=st.text("AB ", max_size=8))
def test_frames_needed_are_those_of_the_loss(text: str) -> None:
    labels = torch.tensor([[ord(sign) for sign in text]], dtype=torch.long)
    assert frames_needed(text) == int(ctc.frames_needed(labels, torch.tensor([len(text)])))


def test_texts_longer_than_their_frames_are_counted(spoken: Path, tmp_path: Path) -> None:
    """Subsampled by 8: 11, 2 and 0 frames for 3, 4 and 2 characters and repeats."""
    make_tokens([spoken / "text"], "char", tmp_path)
    (line,) = unit_warnings(spoken, tmp_path, "char", {**FRONTEND, **FAST})
    assert line.startswith("2 of 3 training utterances (66.7 %)") and "(subsampling 8)" in line and "--token_type bpe" in line
    slower = {"encoder": "early_exit_fast_conformer", "encoder_conf": {"subsampling": 4}}
    assert unit_warnings(spoken, tmp_path, "char", {**FRONTEND, **slower})[0].startswith("1 of 3")
    assert unit_warnings(spoken, tmp_path, "char", {**FRONTEND, "encoder": "vgg_rnn"}) == []
    assert unit_warnings(spoken, tmp_path, "char", {}) == []
    (spoken / "text").write_text("a-1 YES\na-2\nb-1\n")
    assert unit_warnings(spoken, tmp_path, "char", {**FRONTEND, **FAST}) == []


def test_units_that_are_too_many_for_the_text(spoken: Path, tmp_path: Path) -> None:
    words = ["THE CAT SAT", "ON THE MAT", "A HAT"]
    (spoken / "text").write_text("".join(f"{utt} {text}\n" for utt, text in zip(("a-1", "a-2", "b-1"), words, strict=True)))
    make_tokens([spoken / "text"], "bpe", tmp_path, 14)
    (line,) = unit_warnings(spoken, tmp_path, "bpe", {})
    assert line.startswith("11 BPE units, which occur ") and "rule of thumb" in line and "--token_type char" in line
    (spoken / "text").write_text("".join(f"{utt} {' '.join(words * 500)}\n" for utt in ("a-1", "a-2", "b-1")))
    assert unit_warnings(spoken, tmp_path, "bpe", {}) == []
    (tmp_path / "bpe.model").write_bytes(b"none")
    with pytest.raises(UserError, match=r"bpe\.model: missing, or no sentencepiece model"):
        unit_warnings(spoken, tmp_path, "bpe", {})
