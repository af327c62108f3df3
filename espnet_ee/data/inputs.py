"""The utterances of a data directory, ready to be loaded one by one for decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from espnet_ee.data.audio import count_samples, read_audio
from espnet_ee.data.features import frame_shift
from espnet_ee.data.kaldi_ark import load_scp
from espnet_ee.errors import UserError
from espnet_ee.kaldi import read_scp


@dataclass(frozen=True)
class Input:
    """One utterance to decode.

    Attributes:
        utt_id: its id.
        seconds: its length in seconds of audio.
        load: gives samples (N,) float32 in [-1, 1], or features (L, F).
    """

    utt_id: str
    seconds: float
    load: Callable[[], np.ndarray]


def read_inputs(data_dir: str | Path, fs: int) -> list[Input]:
    """Lists a data directory's utterances: its ``feats.scp`` where there is one, else its ``wav.scp``.

    Args:
        data_dir: Kaldi data directory.
        fs: sampling rate the model was trained at, in Hz.

    Raises:
        UserError: neither file is there, a line is broken, a file cannot be read or has another rate.
    """
    folder = Path(data_dir)
    if (folder / "feats.scp").exists():
        return _features(folder)
    if not (folder / "wav.scp").exists():
        raise UserError(f"{folder}: has neither wav.scp nor feats.scp; run stage 3 first")
    if (folder / "segments").exists():
        raise UserError(f"{folder / 'segments'}: is not cut into utterances yet; run stage 3 first")
    return [_audio(utt_id, path, fs, folder) for utt_id, path in read_scp(folder / "wav.scp").items()]


def _audio(utt_id: str, path: str, fs: int, folder: Path) -> Input:
    samples, rate = count_samples(path)
    if rate != fs:
        raise UserError(f"{path}: {rate} Hz, the model takes {fs} Hz; run stage 3 with --fs {fs} ({folder}/wav.scp)")
    if samples == 0:
        raise UserError(f"{path}: no samples; drop {utt_id} from {folder}/wav.scp")
    return Input(utt_id, samples / rate, partial(_samples, path))


def _samples(path: str) -> np.ndarray:
    return read_audio(path)[0]


def _features(folder: Path) -> list[Input]:
    frames = read_scp(folder / "utt2num_frames")
    shift = frame_shift(folder)
    features = load_scp(folder / "feats.scp")
    inputs = []
    for utt_id in features:
        if utt_id not in frames:
            raise UserError(f"{folder}/utt2num_frames: lacks {utt_id}; run stage 3 again")
        if not frames[utt_id].isdecimal() or int(frames[utt_id]) == 0:
            raise UserError(f"{folder}/utt2num_frames: {utt_id} has {frames[utt_id]!r} frames; run stage 3 again")
        inputs.append(Input(utt_id, int(frames[utt_id]) * shift, partial(features.__getitem__, utt_id)))
    return inputs
