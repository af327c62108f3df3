"""Reading, resampling and writing of audio. Everything is mono; every error names its file."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from espnet_ee.data.clip import Clip, Span
from espnet_ee.data.polyphase import change_length
from espnet_ee.errors import UserError
from espnet_ee.files import is_file, refuse_pointer

FULL_SCALE = 32768.0
"""16-bit integers times 1/FULL_SCALE are the floats that soundfile (and so ESPnet) reads."""

_UNKNOWN = 1 << 62
_MOST_RATIO = 1 << 20  # of two rates without their common factors: a filter of twenty times so many values
_LOUDEST = 16.0  # what was summed or amplified may pass 1, but not by so much: those are whole numbers kept as floats
_LOUD = 2.0  # what decoders and limiters leave above 1 is less, and is nothing to speak of
_CANCELLED = 0.01  # a mean of less than this share of its channels' power: channels that have nothing in common leave a half


def read_audio(path: str | Path, span: Span | None = None) -> tuple[np.ndarray, int]:
    """Reads mono audio (FLAC, WAV, PCM SPHERE, ...): all of it, or a span.

    Returns:
        Samples (T,) float32 in [-1, 1], and the sampling rate in Hz.

    Raises:
        UserError: the file is missing, unreadable, empty, cut short, not mono, or holds NaN or infinity;
            or it ends before the span does.
    """
    samples, rate, _ = _read(path, "float32", span)
    return _checked(samples[:, 0], path), rate


def _checked(samples: np.ndarray, path: str | Path) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds samples that are not finite (NaN or infinity); make the file again")
    check_scale(samples, f"{path}: ")
    return samples


def loudest(samples: np.ndarray) -> float:
    """The largest of floats, without their signs."""
    return max(float(samples.max(initial=0.0)), -float(samples.min(initial=0.0)))


def check_scale(samples: np.ndarray, where: str = "") -> None:
    """Raises UserError, which begins with ``where``, for floats that are not in [-1, 1], nor near it."""
    if (most := loudest(samples)) > _LOUDEST:
        raise UserError(f"{where}floats up to {most:g} are not in [-1, 1]; divide them by their full scale (32768 for 16 bits)")


def check_rates(rate: Any, new_rate: int, where: str = "") -> None:
    """Raises UserError, which begins with ``where``, for a rate in Hz that is none, or that cannot become the other."""
    is_number = isinstance(rate, Real) and not isinstance(rate, bool) and math.isfinite(rate)
    if not is_number or rate < 1 or rate != int(rate):
        raise UserError(f"{where}a rate of {rate!r} Hz is none; give the samples' rate")
    ratio = Fraction(new_rate, int(rate))
    if max(ratio.numerator, ratio.denominator) > _MOST_RATIO:
        raise UserError(f"{where}{int(rate)} Hz cannot become {new_rate} Hz; correct the rate, or get the original")


def treatment(channels: int, cancelled: bool, most: float, rate: int, new_rate: int) -> str:
    """What is done to a recording, and what is odd about it; empty where there is nothing to say. ``most`` is its loudest float."""
    mixed = "of opposite phase, which cancel out: channel 1 is taken" if cancelled else "mixed down"
    notes = (
        f"{channels} channels{' ' if cancelled else ', '}{mixed}" if channels > 1 else "",
        "louder than twice full scale (1), taken as it is" if most > _LOUD else "",
        f"{rate} Hz, resampled to {new_rate} Hz" if rate != new_rate else "",
    )
    return "; ".join(filter(None, notes))


def read_any(path: str | Path, rate: int) -> tuple[np.ndarray, str]:
    """Reads any file that libsndfile reads, whatever its rate and channels.

    Args:
        path: the file.
        rate: sampling rate in Hz the samples shall have. They are resampled as ``espnet-ee data format`` does it.

    Returns:
        Samples (T,) float32 in [-1, 1], the mean of the channels; and what was done to the file, empty if nothing.

    Raises:
        UserError: the file is missing, unreadable, empty, cut short, or holds NaN or infinity.
    """
    channels, file_rate, _ = _read(path, "float32", mono=False)
    check_rates(file_rate, rate, f"{path}: ")
    samples, cancelled = mix_down(_checked(channels, path))
    note = treatment(channels.shape[1], cancelled, loudest(channels), file_rate, rate)
    return resample_floats(samples, file_rate, rate).astype(np.float32), note


def mix_down(channels: np.ndarray) -> tuple[np.ndarray, bool]:
    """Makes one channel (T,) float64 of (T, channels), and says whether they cancel each other out: a cable or a converter turned
    one upside down. Then it is the first alone, else their mean."""
    mean = one_channel(channels, False)
    cancelled = cancel_out(np.square(mean).mean(), np.square(channels, dtype=np.float64).mean())
    return one_channel(channels, True) if cancelled else mean, cancelled


def one_channel(channels: np.ndarray, first: bool) -> np.ndarray:
    """The first of (T, channels) or their mean, (T,) float64."""
    return channels[:, 0].astype(np.float64) if first else channels.mean(axis=1, dtype=np.float64)


def cancel_out(power_of_mean: float, power: float) -> bool:
    """Whether channels cancel each other out, by the mean square of their mean and that of all of them."""
    return power_of_mean < _CANCELLED * power


def read_blocks(path: str | Path, size: int) -> Iterator[np.ndarray]:
    """Reads a file of any length and number of channels by and by: (size, channels) float32, the last block shorter.

    Raises:
        UserError: the file is missing, unreadable, empty, cut short, or holds NaN or infinity; perhaps not before its end.
    """
    with _open(path, _OneWay) as sound:
        promised, count = _promised_frames(path, sound), 0
        while len(block := _samples(path, sound, size, "float32")):
            count += len(block)
            yield _checked(block, path)
        _check_count(path, count, promised)


def float_samples(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Samples of any rate and kind as a model takes them: (T,) float32 in [-1, 1] at its rate.

    Args:
        samples: (T,) or (T, channels), floats in [-1, 1] or whole numbers on the scale of their type (as
            ``scipy.io.wavfile.read`` gives them); channels are mixed as :func:`mix_down` does it.
        rate: theirs, in Hz.
        new_rate: the model's, in Hz.

    Raises:
        UserError: the array is something else.
    """
    if samples.ndim not in (1, 2) or not samples.size:
        raise UserError(f"an array of {samples.shape} is no audio; give samples (T,) or (T, channels)")
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        raise UserError(f"an array of {samples.shape}: more channels than samples; give (T, channels), not (channels, T)")
    check_rates(rate, new_rate)
    rate, floats = int(rate), _on_unit_scale(np.asarray(samples))
    if floats.ndim == 2:
        floats, _ = mix_down(floats)
    return resample_floats(floats, rate, new_rate).astype(np.float32)


def _on_unit_scale(samples: np.ndarray) -> np.ndarray:
    if samples.dtype == np.uint8:  # 8-bit WAV: the middle is silence
        return (samples.astype(np.float64) - 128) / 128
    if samples.dtype.kind == "i" and samples.dtype.itemsize in (2, 4):  # of either byte order
        return samples / -float(np.iinfo(samples.dtype).min)
    if not np.issubdtype(samples.dtype, np.floating):
        raise UserError(f"samples of type {samples.dtype} have no known scale; give floats in [-1, 1], int16, int32 or uint8")
    if not np.isfinite(samples).all():
        raise UserError("the audio holds values that are not finite; repair or drop it")
    check_scale(samples)
    return samples.astype(np.float64)


def read_int16(path: str | Path, span: Span | None = None) -> tuple[np.ndarray, int]:
    """Reads audio as (T,) int16 and its rate in Hz: bit-exact where the file has 16 bits, else rounded and clipped."""
    samples, rate, subtype = _read(path, "int16", span)
    if subtype == "PCM_16":
        return samples[:, 0], rate
    floats, rate = read_audio(path, span)
    return to_int16(floats.astype(np.float64) * FULL_SCALE), rate


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Rounds and clips (T,) floats on the 16-bit scale."""
    return np.clip(np.rint(samples), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resamples (T,) int16 from ``rate`` to ``new_rate`` Hz into ceil(T * new_rate / rate) int16 samples."""
    return stretch(samples, Fraction(new_rate, rate))


def resample_floats(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resamples (T,) floats in [-1, 1] with 16 bits, as ``espnet-ee data format`` does it; those of the same rate stay as they are."""
    return samples if rate == new_rate else resample(to_int16(samples * FULL_SCALE), rate, new_rate) / FULL_SCALE


def stretch(samples: np.ndarray, ratio: Fraction) -> np.ndarray:
    """Makes (T,) int16 ``ratio`` times as long by polyphase filtering: ceil(T * ratio) int16 samples, clipped."""
    return samples if ratio == 1 else to_int16(change_length(samples, ratio))


def write_flac(path: str | Path, samples: np.ndarray, rate: int) -> None:
    """Writes (T,) int16 as 16-bit FLAC; makes the folder if needed. Raises UserError if that is not possible."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written by Python, not by libsndfile, which says nothing when a full disk takes only a part of the file.
        content = io.BytesIO()
        soundfile.write(content, samples, rate, subtype="PCM_16", format="FLAC")
        path.write_bytes(content.getvalue())
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"{path}: cannot be written ({error}); check space and permissions") from None


def count_samples(path: str | Path) -> tuple[int, int]:
    """The number of samples and the rate in Hz, from the header alone."""
    with _open(path) as sound:
        return _promised_frames(path, sound), sound.samplerate


def clip_samples(clip: Clip) -> tuple[int, int]:
    """The number of samples of a clip and the rate in Hz, from the header alone."""
    count, rate = count_samples(clip.path)
    if clip.span is None:
        return count, rate
    first, last = clip.span.samples(rate, count, clip.path)
    return last - first, rate


def _read(path: str | Path, dtype: str, span: Span | None = None, mono: bool = True) -> tuple[np.ndarray, int, str]:
    """Samples (T, channels), rate in Hz, and the file's kind of samples as libsndfile calls it."""
    with _open(path) as sound:
        if mono and sound.channels != 1:
            raise UserError(f"{path}: has {sound.channels} channels; make one mono file of each")
        first, promised = 0, _promised_frames(path, sound)
        if span is not None:
            first, last = span.samples(sound.samplerate, promised, str(path))
            promised = last - first
        samples = _samples(path, sound, promised if span else -1, dtype, first)
        _check_count(path, len(samples), promised)
        return samples, sound.samplerate, sound.subtype


def _samples(path: str | Path, sound: soundfile.SoundFile, count: int, dtype: str, first: int = 0) -> np.ndarray:
    """The next samples (T, channels), or those from ``first`` on; -1: all."""
    try:
        if first:
            sound.seek(min(first, sound.frames))
        if count < 0 and not sound.seekable():  # of a codec in which nothing can be looked up
            count = sound.frames
        return sound.read(count, dtype=dtype, always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path}: cannot be read to its end ({error.error_string}); get the file again") from None


def _check_count(path: str | Path, count: int, promised: int) -> None:
    if not promised:
        raise UserError(f"{path}: holds no samples; get the file again, or leave it out")
    if count != promised:
        raise UserError(f"{path}: cut short: {count} of {promised} samples are there; get the file again")


class _OneWay(soundfile.SoundFile):
    """Read from its start to its end, without soundfile's search for the place where it is already: after that, MP3 and Opus
    give other samples, for what they need of the frames before is gone."""

    def seekable(self) -> bool:
        return False


def _open(path: str | Path, kind: type[soundfile.SoundFile] = soundfile.SoundFile) -> soundfile.SoundFile:
    path = Path(path)
    if not is_file(path):
        if re.search(r"\.ark:\d+$", str(path)):
            raise UserError(
                f"{path}: audio inside an archive is read by ESPnet alone: decode it with python3 -m espnet_ee -m "
                "espnet2.bin.asr_inference --policy, or make files of it (asr.sh --audio_format flac)"
            )
        raise UserError(f"{path}: no such audio file; check the path")
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{os.fspath(path)!a}: a file name that is not UTF-8; rename the file") from None
    if not path.stat().st_size:
        raise UserError(f"{path}: is empty (0 bytes); get the file again, or leave it out")
    try:
        return kind(path)
    except soundfile.LibsndfileError as error:
        refuse_pointer(path)
        why = error.error_string
        raise UserError(f"{path}: not readable as audio ({why}); convert it to FLAC or WAV") from None


def _promised_frames(path: str | Path, sound: Any) -> int:
    """What the header says. libsndfile mends the count of a short WAV or SPHERE silently, so it is asked elsewhere."""
    if sound.format == "NIST":
        with open(path, "rb") as stream:
            count = re.search(rb"^sample_count -i (\d+)", stream.read(1024), re.MULTILINE)
        return int(count[1]) if count else sound.frames
    if sound.format in ("WAV", "WAVEX"):
        sizes = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
        # Writers that cannot seek back leave 0 or a greatest number there (sox: this one): no promise at all.
        if sizes and 0 < int(sizes[1]) < 0x7FFFF000:
            missing = int(sizes[1]) - int(sizes[2])
            return sound.frames + max(0, -(-missing // max(1, _bytes_per_frame(sound))))
    if sound.frames >= _UNKNOWN:  # libsndfile (and so ESPnet) cannot read to the end of such a FLAC
        raise UserError(f"{path}: its header does not tell its length (it was written into a pipe); convert it to a file")
    return sound.frames


def _bytes_per_frame(sound: Any) -> int:
    align = re.search(r"Block Align\s*:\s*(\d+)", sound.extra_info)
    return int(align[1]) if align else 2 * sound.channels
