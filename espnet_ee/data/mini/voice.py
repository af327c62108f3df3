"""A small formant synthesiser: phones to samples, numpy only.

Source and filter: a train of glottal pulses and a noise pass through resonances that move from phone to phone.
Filtering is done in overlapping windows of spectra, so there is no loop over samples. Only element-wise
operations and FFTs are used: their last bits may differ between machines, which rounding to 16 bits hides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espnet_ee.data.mini.draws import Random

RATE = 16000
HOP = 128
WINDOW = 512
_OMEGA = np.exp(-2j * np.pi * np.arange(WINDOW // 2 + 1) / WINDOW)
"""z^-1 on the unit circle, at the frequencies of a window (bins,)."""


@dataclass(frozen=True)
class Phone:
    """How a phone sounds.

    Attributes:
        formants: first three resonances of an average male voice in Hz.
        seconds: duration at rate 1.
        voice: strength of the glottal pulses.
        breath: strength of the noise that passes through the formants.
        hiss: strength of the noise made at the teeth or lips.
        hiss_band: its centre and width in Hz.
        glide: the formants at the phone's end, for a diphthong.
        closed: part of the duration, from its start, in which the mouth is shut (stops).
    """

    formants: tuple[int, int, int]
    seconds: float
    voice: float = 0.0
    breath: float = 0.0
    hiss: float = 0.0
    hiss_band: tuple[int, int] = (4000, 1500)
    glide: tuple[int, int, int] | None = None
    closed: float = 0.0


def _vowel(f1: int, f2: int, f3: int, seconds: float = 0.11, glide: tuple[int, int, int] | None = None) -> Phone:
    return Phone((f1, f2, f3), seconds, voice=1.0, glide=glide)


def _stop(formants: tuple[int, int, int], band: tuple[int, int], voiced: bool) -> Phone:
    return Phone(formants, 0.085, voice=0.12 if voiced else 0.0, breath=0.0 if voiced else 0.25, hiss=0.7,
                 hiss_band=band, closed=0.65)  # fmt: skip


def _hiss(formants: tuple[int, int, int], band: tuple[int, int], level: float, voice: float = 0.0) -> Phone:
    return Phone(formants, 0.1, voice=voice, hiss=level, hiss_band=band)


_LIPS, _TEETH, _BACK = (300, 800, 2200), (320, 1750, 2650), (300, 1500, 1950)

PHONES: dict[str, Phone] = {
    "A": _vowel(720, 1650, 2450), "E": _vowel(540, 1850, 2500), "I": _vowel(400, 2050, 2600),
    "O": _vowel(640, 950, 2450), "U": _vowel(640, 1250, 2400, 0.1), "EE": _vowel(270, 2350, 3050, 0.15),
    "OO": _vowel(310, 850, 2250, 0.15), "AR": _vowel(740, 1080, 1750, 0.16),
    "AI": _vowel(560, 1800, 2500, 0.16, (320, 2250, 2900)), "OA": _vowel(560, 980, 2400, 0.16, (330, 760, 2250)),
    "L": Phone((360, 1050, 2750), 0.075, voice=0.5), "R": Phone((330, 1150, 1500), 0.075, voice=0.6),
    "W": Phone((290, 620, 2200), 0.075, voice=0.5), "Y": Phone((260, 2300, 3100), 0.07, voice=0.5),
    "M": Phone((250, 950, 2200), 0.085, voice=0.4), "N": Phone((250, 1650, 2650), 0.085, voice=0.4),
    "NG": Phone((250, 2150, 2450), 0.095, voice=0.4),
    "P": _stop(_LIPS, (700, 700), False), "B": _stop(_LIPS, (600, 600), True),
    "T": _stop(_TEETH, (4300, 1300), False), "D": _stop(_TEETH, (3800, 1300), True),
    "K": _stop(_BACK, (1900, 600), False), "G": _stop(_BACK, (1700, 600), True),
    "F": _hiss(_LIPS, (5500, 4500), 0.22), "V": _hiss(_LIPS, (5000, 4500), 0.14, 0.35),
    "TH": _hiss((320, 1400, 2600), (6500, 1500), 0.2, 0.12),
    "S": _hiss(_TEETH, (6000, 1100), 0.75), "Z": _hiss(_TEETH, (6000, 1100), 0.45, 0.35),
    "SH": _hiss((300, 1850, 2500), (3000, 800), 0.8),
    "CH": Phone((300, 1850, 2500), 0.13, hiss=0.9, hiss_band=(3100, 900), closed=0.4),
    "J": Phone((300, 1850, 2500), 0.12, voice=0.15, hiss=0.65, hiss_band=(2900, 900), closed=0.4),
    "H": Phone((500, 1500, 2500), 0.07, breath=0.4),
    "-": Phone((500, 1500, 2500), 0.05),
}  # fmt: skip
"""All phones; ``-`` is the gap between words."""


@dataclass(frozen=True)
class Voice:
    """A speaker: mean pitch in Hz, formants relative to the table's, strength of breath, and liveliness of pitch."""

    pitch: float
    scale: float
    breath: float
    melody: float


def make_voice(random: Random, high: bool) -> Voice:
    """Draws a speaker with a high or a low voice."""
    pitch = random.uniform(165, 230) if high else random.uniform(90, 140)
    scale = random.uniform(1.08, 1.2) if high else random.uniform(0.94, 1.06)
    return Voice(pitch, scale, random.uniform(0.01, 0.05), random.uniform(0.04, 0.12))


@dataclass(frozen=True)
class _Tracks:
    """What the synthesiser is to do at each knot in time: times (K,) in s, levels (K,), formants (K, 3) in Hz; and the end of each phone in s."""

    times: np.ndarray
    levels: dict[str, np.ndarray]
    formants: np.ndarray
    bands: np.ndarray
    ends: np.ndarray


def speak(phones: list[str], voice: Voice, rate: float, random: Random) -> tuple[np.ndarray, np.ndarray]:
    """Speaks phones (P,) at ``rate`` times the normal speed.

    Returns:
        (T,) float64 of about unit power where voiced, and the end of each phone (P,) in s.
    """
    tracks = _lay_out(phones, rate, random)
    count = int(tracks.times[-1] * RATE)
    seconds = np.arange(count) / RATE
    level = {name: np.interp(seconds, tracks.times, values) for name, values in tracks.levels.items()}
    pulses = _pulses(seconds, voice, random) * level["voice"]
    through_mouth = pulses + random.noise(count) * (level["breath"] + voice.breath * level["voice"])
    at_teeth = random.noise(count) * level["hiss"]
    centres = np.arange(0, count + WINDOW, HOP) / RATE
    mouth = _mouth_response(centres, tracks, voice)
    teeth = _teeth_response(centres, tracks)
    return _filtered(through_mouth, mouth) + _filtered(at_teeth, teeth), tracks.ends


def _lay_out(phones: list[str], rate: float, random: Random) -> _Tracks:
    """Places each phone's targets as knots; between knots everything moves in straight lines."""
    knots: list[tuple[float, Phone, tuple[int, int, int], float]] = []
    now, ends = 0.0, []
    for name in phones:
        phone = PHONES[name]
        length = phone.seconds * random.uniform(0.85, 1.2) / rate
        ramp = min(0.018, length / 4)
        opens = now + phone.closed * length
        if phone.closed:
            knots += [(now + ramp / 2, phone, phone.formants, 0.0), (opens, phone, phone.formants, 0.0)]
        knots.append((opens + (0.002 if phone.closed else ramp), phone, phone.formants, 1.0))
        knots.append((now + length - ramp, phone, phone.glide or phone.formants, 1.0))
        now += length
        ends.append(now)
    level = np.array([knot[3] for knot in knots])
    levels = {
        # A shut mouth silences the noises but lets a voiced stop hum on.
        "voice": np.array([knot[1].voice for knot in knots]),
        "breath": np.array([knot[1].breath for knot in knots]) * level,
        "hiss": np.array([knot[1].hiss for knot in knots]) * level,
    }
    formants = np.array([knot[2] for knot in knots], dtype=np.float64)
    times = np.array([knot[0] for knot in knots])
    times[-1] = now
    bands = np.array([knot[1].hiss_band for knot in knots], dtype=np.float64)
    return _Tracks(times, levels, formants, bands, np.array(ends))


def _pulses(seconds: np.ndarray, voice: Voice, random: Random) -> np.ndarray:
    """Glottal pulses (T,): the derivative of a cubic flow, with falling pitch, vibrato and slow melody."""
    phase = random.uniform(0, 1)
    duration = max(float(seconds[-1]), 1.0)
    bend = 1.08 - 0.2 * seconds / duration
    bend = bend + voice.melody * np.sin(2 * np.pi * (random.uniform(0.6, 1.4) * seconds + phase))
    bend = bend + 0.01 * np.sin(2 * np.pi * 5.5 * seconds)
    cycle = np.cumsum(voice.pitch * bend / RATE) % 1.0
    opening = cycle / 0.6
    return np.where(opening < 1, 2 * opening - 3 * opening * opening, 0.0) * 2.0


def _mouth_response(centres: np.ndarray, tracks: _Tracks, voice: Voice) -> np.ndarray:
    """Complex response (frames, bins) of five resonances in a row."""
    gain = np.ones(len(centres))
    denominator = np.ones((len(centres), WINDOW // 2 + 1), dtype=np.complex128)
    moving = [np.interp(centres, tracks.times, tracks.formants[:, index]) for index in range(3)]
    fixed = [np.full(len(centres), hertz) for hertz in (3500.0, 4500.0)]
    for hertz, width in zip(moving + fixed, (70, 90, 130, 250, 300), strict=True):
        radius = np.exp(-np.pi * width / RATE)
        b = 2 * radius * np.cos(2 * np.pi * np.minimum(hertz * voice.scale, 7600.0) / RATE)
        gain *= 1 - b + radius * radius
        denominator *= (1 + radius * radius * _OMEGA * _OMEGA) - b[:, None] * _OMEGA
    return gain[:, None] / denominator


def _teeth_response(centres: np.ndarray, tracks: _Tracks) -> np.ndarray:
    """Response (frames, bins) of one broad band."""
    hertz = (np.arange(WINDOW // 2 + 1) * RATE / WINDOW)[None]
    centre = np.interp(centres, tracks.times, tracks.bands[:, 0])[:, None]
    width = np.interp(centres, tracks.times, tracks.bands[:, 1])[:, None]
    distance = (hertz - centre) / width
    return 0.5 / (1 + distance * distance)


def _filtered(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Filters (T,) by a response (frames, bins) that holds around each multiple of HOP."""
    padded = np.concatenate([np.zeros(WINDOW // 2), samples, np.zeros(2 * WINDOW)])
    window = np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW)
    blocks = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][: len(response)]
    spectra = np.fft.rfft(blocks * window, axis=1) * response[: len(blocks)]
    shaped = np.fft.irfft(spectra, n=WINDOW, axis=1) * window * (2 * HOP / WINDOW)
    result = np.zeros(len(blocks) * HOP + WINDOW)
    step = WINDOW // HOP
    for part in range(step):
        pieces = shaped[:, part * HOP : (part + 1) * HOP].reshape(-1)
        result[part * HOP : part * HOP + len(pieces)] += pieces
    return result[WINDOW // 2 : WINDOW // 2 + len(samples)]
