"""Small corpora and data directories that the data tests share."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ee.data.mini.make import make_corpus
from espnet_ee.kaldi import write_scp

RATE = 16000


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini corpus of one utterance a speaker: 10 train, 4 dev, 4 test."""
    root = tmp_path_factory.mktemp("mini")
    make_corpus(root, nj=1, utterances_per_speaker=1)
    return root


@pytest.fixture
def tone() -> Callable[[int], np.ndarray]:
    """Makes so many int16 samples that are not silent and do not repeat."""

    def make(count: int) -> np.ndarray:
        return np.random.default_rng(count).integers(-20000, 20000, count).astype(np.int16)

    return make


@pytest.fixture
def data_dir(tmp_path: Path, tone: Callable[[int], np.ndarray]) -> Path:
    """A valid data directory of three utterances of two speakers, 1.0, 0.5 and 0.25 s long."""
    lengths = {"a-1": RATE, "a-2": RATE // 2, "b-1": RATE // 4}
    for utt_id, count in lengths.items():
        soundfile.write(tmp_path / f"{utt_id}.wav", tone(count), RATE, subtype="PCM_16")
    folder = tmp_path / "data" / "set"
    write_scp(folder / "wav.scp", {utt_id: str(tmp_path / f"{utt_id}.wav") for utt_id in lengths})
    write_scp(folder / "text", {"a-1": "GO ON", "a-2": "NO", "b-1": "GO"})
    write_scp(folder / "utt2spk", {"a-1": "a", "a-2": "a", "b-1": "b"})
    write_scp(folder / "spk2utt", {"a": "a-1 a-2", "b": "b-1"})
    return folder


@pytest.fixture
def write_sphere() -> Callable[..., None]:
    """Writes int16 samples as a NIST SPHERE file; ``promise`` is the sample count its header tells."""

    def write(path: Path, samples: np.ndarray, promise: int | None = None) -> None:
        count = len(samples) if promise is None else promise
        fields = [
            f"sample_count -i {count}", f"sample_rate -i {RATE}", "sample_n_bytes -i 2", "sample_byte_format -s2 01",
            "channel_count -i 1", "sample_coding -s3 pcm", "end_head",
        ]  # fmt: skip
        header = ("NIST_1A\n   1024\n" + "\n".join(fields) + "\n").encode().ljust(1024)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header + samples.astype("<i2").tobytes())

    return write


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """In a block ``with full_disk(n)`` no file can grow beyond n bytes: writing fails as it does on a full disk."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
def tree_bytes() -> Callable[[Path], dict[str, bytes]]:
    """Reads every file below a folder: relative path -> content."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
