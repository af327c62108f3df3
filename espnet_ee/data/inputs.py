"""The utterances of a data directory, ready to be loaded one by one for decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from espnet_ee.data.audio import clip_samples, read_audio
from espnet_ee.data.clip import Clip, clips_of
from espnet_ee.data.datadir import read_wav_scp
from espnet_ee.data.features import frame_shift
from espnet_ee.data.kaldi_ark import load_scp
from espnet_ee.errors import UserError
from espnet_ee.files import file_digest
from espnet_ee.kaldi import is_count, read_scp, split_place


@dataclass(frozen=True)
class Input:
    """One utterance to decode.

    Attributes:
        utt_id: its id.
        seconds: its length in seconds of audio.
        load: gives samples (N,) float32 in [-1, 1], or features (L, F); a UserError says why it cannot.
    """

    utt_id: str
    seconds: float
    load: Callable[[], np.ndarray]


def read_inputs(data_dir: str | Path, fs: int) -> list[Input]:
    """Lists the utterances of a Kaldi data directory: its ``feats.scp`` where there is one, else its ``wav.scp``, of ``fs`` Hz.

    One whose sound cannot be read stands in the list, with 0 seconds: loading it says why, and the others can be decoded.

    Raises:
        UserError: neither file is there, a line is broken, or a file has another rate.
    """
    folder = Path(data_dir)
    if (folder / "feats.scp").exists():
        return _features(folder)
    return [_audio(utt_id, clip, fs, folder / "wav.scp") for utt_id, clip in _clips(folder).items()]


def _clips(folder: Path) -> dict[str, Clip]:
    table = folder / "wav.scp"
    if not table.exists():
        raise UserError(f"{folder}: has neither wav.scp nor feats.scp; give a data directory")
    segments = read_scp(folder / "segments") if (folder / "segments").exists() else None
    return clips_of(read_wav_scp(table), segments, folder)


def _audio(utt_id: str, clip: Clip, fs: int, table: Path) -> Input:
    try:
        samples, rate = clip_samples(clip)
    except UserError as error:
        return Input(utt_id, 0.0, partial(_refuse, str(error)))
    if rate != fs:
        raise UserError(f"{clip.path}: {rate} Hz, the model takes {fs} Hz; run espnet-ee data format --fs {fs} ({table})")
    if samples == 0:
        return Input(utt_id, 0.0, partial(_refuse, f"{clip.path}: no samples; drop {utt_id} from {table}"))
    return Input(utt_id, samples / rate, partial(_samples, clip))


def _refuse(reason: str) -> np.ndarray:
    raise UserError(reason)


def _samples(clip: Clip) -> np.ndarray:
    return read_audio(clip.path, clip.span)[0]


def _features(folder: Path) -> list[Input]:
    missing = [name for name in ("utt2num_frames", "frontend.yaml") if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{folder}: has feats.scp, and no {' and no '.join(missing)}, which stage 3 of asr_ee.sh writes; decode features of "
            "another recipe with python3 -m espnet_ee -m espnet2.bin.asr_inference --policy"
        )
    frames = read_scp(folder / "utt2num_frames")
    shift = frame_shift(folder)
    features = load_scp(folder / "feats.scp")
    inputs = []
    for utt_id in features:
        if utt_id not in frames:
            raise UserError(f"{folder}/utt2num_frames: lacks {utt_id}; extract the features again")
        if not is_count(frames[utt_id]) or int(frames[utt_id]) == 0:
            raise UserError(f"{folder}/utt2num_frames: {utt_id} has {frames[utt_id]!r} frames; extract the features again")
        inputs.append(Input(utt_id, int(frames[utt_id]) * shift, partial(features.__getitem__, utt_id)))
    return inputs


def content_digest(data_dir: str | Path) -> str:
    """What a data directory holds: its utterances' ids and the bytes of their audio or features, not where these lie.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    folder = Path(data_dir)
    if (folder / "feats.scp").exists():
        table = read_scp(folder / "feats.scp")
        places: dict[str, tuple[str, object]] = {utt: split_place(value, f"{folder}/feats.scp") for utt, value in table.items()}
    else:
        places = {utt: (clip.path, clip.span) for utt, clip in _clips(folder).items()}
    digest, files = hashlib.blake2b(digest_size=16), {}  # one archive or recording holds many utterances
    for utt_id, (path, part) in sorted(places.items()):
        if path not in files:
            files[path] = file_digest(path)
        digest.update(f"{utt_id} {files[path]} {part}\n".encode())
    return digest.hexdigest()
