"""The utterances of a data directory, ready to be loaded one by one for decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from espnet_ee.data.audio import clip_samples, read_audio
from espnet_ee.data.clip import Clip, clips_of
from espnet_ee.data.datadir import refuse_command
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
    table = folder / "wav.scp"
    if not table.exists():
        raise UserError(f"{folder}: has neither wav.scp nor feats.scp; give a data directory")
    paths = read_scp(table)
    for number, value in enumerate(paths.values(), 1):
        refuse_command(value, f"{table}:{number}")
    segments = read_scp(folder / "segments") if (folder / "segments").exists() else None
    return [_audio(utt_id, clip, fs, table) for utt_id, clip in clips_of(paths, segments, folder).items()]


def _audio(utt_id: str, clip: Clip, fs: int, table: Path) -> Input:
    samples, rate = clip_samples(clip)
    if rate != fs:
        raise UserError(f"{clip.path}: {rate} Hz, the model takes {fs} Hz; run espnet-ee data format --fs {fs} ({table})")
    if samples == 0:
        raise UserError(f"{clip.path}: no samples; drop {utt_id} from {table}")
    return Input(utt_id, samples / rate, partial(_samples, clip))


def _samples(clip: Clip) -> np.ndarray:
    return read_audio(clip.path, clip.span)[0]


def _features(folder: Path) -> list[Input]:
    frames = read_scp(folder / "utt2num_frames")
    shift = frame_shift(folder)
    features = load_scp(folder / "feats.scp")
    inputs = []
    for utt_id in features:
        if utt_id not in frames:
            raise UserError(f"{folder}/utt2num_frames: lacks {utt_id}; extract the features again")
        if not frames[utt_id].isdecimal() or int(frames[utt_id]) == 0:
            raise UserError(f"{folder}/utt2num_frames: {utt_id} has {frames[utt_id]!r} frames; extract the features again")
        inputs.append(Input(utt_id, int(frames[utt_id]) * shift, partial(features.__getitem__, utt_id)))
    return inputs
