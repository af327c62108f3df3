"""Kaldi archives of float matrices. The one module that knows which library reads and writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.files import read_scp

try:
    import kaldiio as _kaldi
except ImportError:  # ESPnet >= 202609 brings omniio instead; its archives are byte-identical
    from omniio import kaldi as _kaldi

KALDI_SPEECH_FEATURE = 2
"""Kaldi's compression for speech features: 8 bits a value, scaled per column."""


def write_ark(ark: Path, matrices: Iterable[tuple[str, np.ndarray]], compress: bool = False) -> dict[str, str]:
    """Writes (T, D) float32 matrices into one archive.

    Returns:
        utterance -> ``ark:offset``, as feats.scp has it.
    """
    scp = ark.with_suffix(".scp")
    method = KALDI_SPEECH_FEATURE if compress else None
    with _kaldi.WriteHelper(f"ark,scp:{ark},{scp}", compression_method=method) as writer:
        for utt_id, matrix in matrices:
            writer[utt_id] = np.ascontiguousarray(matrix, dtype=np.float32)
    table = read_scp(scp)
    scp.unlink()
    return table


def load_scp(path: Path) -> Mapping[str, np.ndarray]:
    """Opens feats.scp as a mapping that reads a matrix when it is asked for."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; extract the features first")
    return _kaldi.load_scp(str(path))
