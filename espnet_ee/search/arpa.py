"""n-gram language models of tokens: ARPA files, computed by KenLM, which flashlight-text brings along."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from espnet_ee.errors import UserError
from espnet_ee.files import is_file

_BEGIN = "\\data\\"
_NOT_SPOKEN = ("<blank>", "<blk>", "<eps>", "<unk>", "<sos/eos>", "<s>", "</s>")
_SPACES = ("<space>", "▁")  # one and the same where they stand alone: exported models have the second


def load_lm(path: str | Path, tokens: Sequence[str], blank: int) -> Any:
    """Loads a language model as flashlight's decoders take it.

    Args:
        path: ARPA file whose words are the model's tokens.
        tokens: the model's.
        blank: blank id.

    Raises:
        UserError: it is missing, no ARPA file, damaged, or most of the model's tokens are none of its words.
    """
    path = Path(path)
    words = read_unigrams(path)
    names = [_name_in(words, token) for token in tokens]
    spoken = [name for place, name in enumerate(names) if place != blank and name not in _NOT_SPOKEN]
    missing = [name for name in spoken if name not in words]
    if 2 * len(missing) > len(spoken):
        some = ", ".join(missing[:5])
        raise UserError(
            f"{path}: of the model's {len(spoken)} tokens it lacks {len(missing)} ({some} ...), so it is of other units; train one on "
            "texts of the model's tokens with blanks between"
        )
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    dictionary = Dictionary()
    for place, name in enumerate(names):
        dictionary.add_entry(name, place)
    try:
        with _silent():
            return KenLM(str(path), dictionary)
    except RuntimeError as error:
        raise UserError(f"{path}: KenLM cannot read it ({str(error).splitlines()[-1]}); make it again") from None


def read_unigrams(path: Path) -> set[str]:
    """The words of an ARPA file.

    Raises:
        UserError: it is missing, or no such file.
    """
    if not is_file(path):
        raise UserError(f"{path}: no such language model; check the path (search: lm)")
    words: set[str] = set()
    try:
        with open(path, encoding="utf-8") as stream:
            if next((line for line in stream if line.strip()), "").strip() != _BEGIN:
                raise UserError(
                    f"{path}: does not begin with {_BEGIN}, so it is no ARPA file; give one (KenLM's binaries are not read)"
                )
            inside = False
            for line in stream:
                if line.startswith("\\"):
                    if inside:
                        break
                    inside = line.strip() == "\\1-grams:"
                elif inside and len(columns := line.split()) >= 2:
                    words.add(columns[1])
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8, so it is no ARPA file; give one (KenLM's binaries are not read)") from None
    return words


def _name_in(words: set[str], token: str) -> str:
    """What a language model calls a token."""
    if token in words or token not in _SPACES:
        return token
    return next((name for name in _SPACES if name in words), token)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bar that KenLM draws on the process's stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
