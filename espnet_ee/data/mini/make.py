"""The mini corpus: synthetic sentences of several speakers, some clean and slow, some fast and noisy.

It stands in for a real corpus where none can be had (tests, a first run), and is made to be worth exiting early on:
a clean utterance is easy, one in noise needs more of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_ee.data.audio import to_int16, write_flac
from espnet_ee.data.mini.draws import Random
from espnet_ee.data.mini.sentences import make_sentence, pronounce
from espnet_ee.data.mini.voice import RATE, Voice, make_voice, speak
from espnet_ee.data.parallel import ordered_map
from espnet_ee.data.word_times import word_times_text
from espnet_ee.errors import UsageError
from espnet_ee.files import atomic_dir, atomic_write, refuse_other_folder
from espnet_ee.kaldi import write_scp

SPEAKERS: dict[str, tuple[int, ...]] = {
    "train": tuple(range(101, 119)),
    "dev": tuple(range(201, 209)),
    "test": tuple(range(301, 317)),
}
LEVEL = 2500.0
"""Power (root mean square) of the speech on the 16-bit scale."""

CLEAN_SHARE = 0.45
LOWEST_SNR_DB = {"white": 10.0, "pink": 5.0, "babble": 8.0}
"""Where each kind of noise leaves an utterance hard but not hopeless."""

HIGHEST_SNR_DB = 25.0


@dataclass(frozen=True)
class _Job:
    folder: Path
    seed: int
    set_name: str
    speaker: int
    number: int

    @property
    def reader_chapter(self) -> str:
        return f"{self.speaker}-{self.speaker * 10 + 1}"

    @property
    def utt_id(self) -> str:
        return f"{self.reader_chapter}-{self.number:04d}"


@dataclass(frozen=True)
class Sentence:
    """One utterance: its transcript, how difficult it was made (``snr_db`` is infinite in silence), and when each word is said (s)."""

    text: str
    seconds: float
    snr_db: float
    noise: str
    rate: float
    times: tuple[tuple[float, float], ...]


def make_corpus(out: Path, nj: int = 1, utterances_per_speaker: int = 70, seed: int = 0) -> dict[str, int]:
    """Makes ``out/MiniSpeech`` in LibriSpeech's layout, with ``SPEAKERS.TXT``, ``difficulty.tsv`` and ``words.ctm``.

    A MiniSpeech that is there is replaced. Of ``utterances_per_speaker`` the 24 who do not train have two sevenths. The number of
    processes does not change the result, which is: set -> number of utterances.

    Raises:
        UserError: ``out/MiniSpeech`` is something else.
    """
    if utterances_per_speaker < 1:
        raise UsageError(f"--utterances_per_speaker {utterances_per_speaker}: give 1 or more")
    final = out / "MiniSpeech"
    refuse_other_folder(final, ("difficulty.tsv",))
    with atomic_dir(final) as folder:
        jobs = _jobs(folder, seed, utterances_per_speaker)
        sentences = ordered_map(_make_one, jobs, nj, "mini corpus", chunk=16)
        pairs = list(zip(jobs, sentences, strict=True))
        for (set_name, speaker), texts in _chapters(pairs).items():
            write_scp(folder / set_name / speaker.replace("-", "/") / f"{speaker}.trans.txt", texts)
        _write_speakers(folder / "SPEAKERS.TXT", pairs)
        _write_difficulty(folder / "difficulty.tsv", pairs)
        _write_words(folder / "words.ctm", pairs)
    return {name: sum(job.set_name == name for job in jobs) for name in SPEAKERS}


def _jobs(folder: Path, seed: int, utterances_per_speaker: int) -> list[_Job]:
    others = max(1, round(utterances_per_speaker * 2 / 7))
    counts = {name: utterances_per_speaker if name == "train" else others for name in SPEAKERS}
    return [
        _Job(folder, seed, name, speaker, number)
        for name, speakers in SPEAKERS.items()
        for speaker in speakers
        for number in range(counts[name])
    ]


def make_utterance(seed: int, speaker: int, number: int) -> tuple[np.ndarray, Sentence]:
    """Speaks one sentence: (T,) int16 at 16 kHz, and what it is. The same arguments give the same samples."""
    random = Random(seed, speaker, number)
    voice = _voice_of(seed, speaker)
    text = make_sentence(random)
    rate = random.uniform(0.8, 1.35)
    clean = random.uniform(0, 1) < CLEAN_SHARE
    noise = "none" if clean else random.choice(tuple(LOWEST_SNR_DB))
    snr_db = float("inf") if clean else round(random.uniform(LOWEST_SNR_DB[noise], HIGHEST_SNR_DB), 1)
    speech, ends = speak(phones_of(text), voice, rate, random)
    speech = speech / np.sqrt(np.mean(speech * speech))
    silences = np.zeros(int(random.uniform(0.08, 0.25) * RATE)), np.zeros(int(random.uniform(0.08, 0.25) * RATE))
    signal = np.concatenate([silences[0], speech, silences[1]])
    # Real recordings are never digital silence: even "clean" has a faint floor.
    signal = signal + random.noise(len(signal)) * 10 ** (-45 / 20)
    if not clean:
        signal = signal + make_noise(noise, len(signal), random) * 10 ** (-snr_db / 20)
    level = LEVEL * random.uniform(0.6, 1.3)
    times = _times(text, ends + len(silences[0]) / RATE, len(silences[0]) / RATE)
    return to_int16(signal * level), Sentence(text, len(signal) / RATE, snr_db, noise, round(rate, 3), times)


def _times(text: str, ends: np.ndarray, start: float) -> tuple[tuple[float, float], ...]:
    """When each word is said, by the ends of all phones, the gaps behind words among them."""
    times, place = [], 0
    for word in text.split():
        place += len(pronounce(word)) + 1
        times.append((start, float(ends[place - 2])))
        start = float(ends[place - 1])
    return tuple(times)


def _voice_of(seed: int, speaker: int) -> Voice:
    return make_voice(Random(seed, speaker, "voice"), high=speaker % 2 == 0)


def phones_of(text: str) -> list[str]:
    """The phones of a sentence, with a short gap between words."""
    phones: list[str] = []
    for word in text.split():
        phones += [*pronounce(word), "-"]
    return phones


def make_noise(kind: str, count: int, random: Random) -> np.ndarray:
    """Noise (count,) of unit power: ``white``, ``pink`` (falling 3 dB an octave), or ``babble`` of three voices."""
    if kind == "white":
        return random.noise(count)
    if kind == "pink":
        size = 1 << (count - 1).bit_length()  # a power of two: the FFT is quick for every length
        spectrum = np.fft.rfft(random.noise(size))
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 4.0), n=size)[:count]
    else:
        noise = np.zeros(count)
        for voice in range(3):
            murmur, _ = speak(phones_of(make_sentence(random)), make_voice(random, voice == 0), 1.0, random)
            noise += np.resize(np.roll(murmur, int(random.uniform(0, len(murmur)))), count)
    return noise / np.sqrt(np.mean(noise * noise))


def _make_one(job: _Job) -> Sentence:
    samples, sentence = make_utterance(job.seed, job.speaker, job.number)
    folder = job.folder / job.set_name / job.reader_chapter.replace("-", "/")
    write_flac(folder / f"{job.utt_id}.flac", samples, RATE)
    return sentence


_Pairs = list[tuple[_Job, Sentence]]


def _chapters(pairs: _Pairs) -> dict[tuple[str, str], dict[str, str]]:
    chapters: dict[tuple[str, str], dict[str, str]] = {}
    for job, sentence in pairs:
        chapters.setdefault((job.set_name, job.reader_chapter), {})[job.utt_id] = sentence.text
    return chapters


def _write_speakers(path: Path, pairs: _Pairs) -> None:
    with atomic_write(path) as stream:
        stream.write(";ID  |SEX| SUBSET           |MINUTES| NAME\n")
        for set_name, speakers in SPEAKERS.items():
            for speaker in speakers:
                seconds = sum(sentence.seconds for job, sentence in pairs if job.speaker == speaker)
                sex = "F" if speaker % 2 == 0 else "M"
                stream.write(f"{speaker:<5}| {sex} | {set_name:<16} | {seconds / 60:5.2f} | Synthetic {speaker}\n")


def _write_difficulty(path: Path, pairs: _Pairs) -> None:
    with atomic_write(path) as stream:
        stream.write("utt_id\tset\tseconds\tsnr_db\tnoise\trate\twords\n")
        for job, sentence in pairs:
            stream.write(f"{job.utt_id}\t{job.set_name}\t{sentence.seconds:.3f}\t{sentence.snr_db}\t{sentence.noise}\t")
            stream.write(f"{sentence.rate}\t{len(sentence.text.split())}\n")


def _write_words(path: Path, pairs: _Pairs) -> None:
    with atomic_write(path) as stream:
        for job, sentence in pairs:
            times = zip(sentence.text.split(), sentence.times, strict=True)
            stream.write(word_times_text({job.utt_id: [(word, start, end) for word, (start, end) in times]}))
