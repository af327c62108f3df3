"""The utterances of a set that could not be decoded: listed beside the decoding, and said on every page that lacks them."""

from __future__ import annotations

from pathlib import Path

from espnet_ee.kaldi import read_scp

FAILED = "failed"
"""The file in a decoding's folder: ``ID REASON`` a line. A decoding without it has every utterance."""


def read_failed(decoding: Path) -> dict[str, str]:
    """Why each utterance that a decoding lacks could not be decoded, by id.

    Args:
        decoding: its folder.
    """
    path = decoding / FAILED
    return read_scp(path) if path.exists() else {}
