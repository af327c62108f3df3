"""Models by what people have of them: a folder, or a name on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.errors import UserError, first_line, missing_package

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_folder(source: str | Path, patterns: Sequence[str]) -> Path:
    """The folder itself, or where a model of the hub was downloaded to.

    Args:
        source: a folder; only a name like ``owner/model`` whose first part is no folder here reaches the network.
        patterns: the files that loading reads; no others are downloaded.

    Raises:
        UserError: there is no such folder or model.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(
            f"{source}: is a file, and a model is a folder; unpack an archive, and give the folder of its config.yaml"
        )
    if not _HUB_NAME.fullmatch(os.fspath(source)) or folder.parent.exists():
        raise UserError(f"{source}: no such folder (and no name like owner/model of the hub)")
    return _download(os.fspath(source), patterns)


def _download(name: str, patterns: Sequence[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: no such folder, and to download models, {missing_package(error)}") from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:
        raise UserError(f"{name}: no such folder, and the hub says: {first_line(error)}") from None
