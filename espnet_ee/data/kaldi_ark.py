"""Kaldi archives of float matrices. The one module that knows which library reads and writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.kaldi import read_scp, split_place

try:
    import kaldiio as _kaldi
except ImportError:  # ESPnet >= 202609 brings omniio instead; its archives are byte-identical
    from omniio import kaldi as _kaldi

_STARTS = (b"\0B", b" [")
"""How a matrix of Kaldi begins, binary or as text. The libraries unpickle what begins in another way."""

KALDI_SPEECH_FEATURE = 2
"""Kaldi's compression for speech features: 8 bits a value, scaled per column."""


def write_ark(ark: Path, matrices: Iterable[tuple[str, np.ndarray]], compress: bool = False) -> dict[str, str]:
    """Writes (T, D) float32 matrices into one archive; gives utterance -> ``ark:offset``, as feats.scp has it."""
    scp = ark.with_suffix(".scp")
    method = KALDI_SPEECH_FEATURE if compress else None
    with _kaldi.WriteHelper(f"ark,scp:{ark},{scp}", compression_method=method) as writer:
        for utt_id, matrix in matrices:
            writer[utt_id] = np.ascontiguousarray(matrix, dtype=np.float32)
    table = read_scp(scp)
    scp.unlink()
    return table


def load_scp(path: Path) -> Mapping[str, np.ndarray]:
    """Opens feats.scp as a mapping that reads a matrix when it is asked for.

    Raises:
        UserError: it is missing or a line is not ``FILE:OFFSET``; and, when asked for, a matrix cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; extract the features first")
    return _Matrices(path)


class _Matrices(Mapping[str, np.ndarray]):
    """The matrices of feats.scp. The library sees none of its lines, only places that were checked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = read_scp(path)
        for number, value in enumerate(self._values.values(), 1):
            split_place(value, f"{path}:{number}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: str) -> np.ndarray:
        where = f"{self._path}: {key}: {self._values[key]}"
        try:
            return _read_matrix(self._values[key], where)
        except UserError:
            raise
        except Exception as error:  # whatever the library says of a missing or damaged archive
            raise UserError(f"{where}: cannot be read ({error}); extract the features again") from None


def _read_matrix(value: str, where: str) -> np.ndarray:
    file, offset = split_place(value, where)
    with open(file, "rb") as stream:
        stream.seek(offset)
        matrix = _kaldi.load_mat(value) if stream.read(2) in _STARTS else None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2:
        raise UserError(f"{where}: there is no matrix of Kaldi; extract the features again")
    return matrix
