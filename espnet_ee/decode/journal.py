"""What a decoding has done so far, on disk: one that is cut off goes on inside its set, or its recording, whatever ended it.

A file beside what is made, a line of JSON for each batch; the first says what is decoded with what. Python writes
floats as JSON so that they are read back bit by bit.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from espnet_ee.decode.recognition import Recognition
from espnet_ee.errors import UserError
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.table import EvidenceRow
from espnet_ee.search.words import Word

_LONGEST = 240  # bytes of a name, to which more is added; systems take 255


class Journal:
    """The results of earlier runs, and the file that takes those to come.

    Attributes:
        results: by utterance, as far as they were known when the journal was opened.
        seconds: of computing that they took.
        added: utterances noted since.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.results: dict[str, Recognition] = {}
        self.seconds = 0.0
        self.added = 0
        self._stream = stream

    def add(self, results: Mapping[str, Recognition], seconds: float) -> None:
        """Notes a batch."""
        self.added += len(results)
        if self._stream is not None:
            line = {"seconds": seconds, "results": {utt_id: asdict(result) for utt_id, result in results.items()}}
            self._stream.write(json.dumps(line, default=_plain) + "\n")
            self._stream.flush()

    def read(self, line: str) -> None:
        """Takes in a batch of an earlier run."""
        batch = json.loads(line)
        self.results |= {utt_id: _recognition(mapping) for utt_id, mapping in batch["results"].items()}
        self.seconds += batch["seconds"]


@contextmanager
def open_journal(out: Path, identity: Mapping[str, Any]) -> Iterator[Journal]:
    """Opens the journal of a decoding; it is gone when the block succeeds, and stays when it does not.

    Args:
        out: the decoding's own folder or file, which is made in the end.
        identity: what is decoded with what; the journal of anything else is begun anew.

    Raises:
        UserError: another process is writing it.
    """
    name = out.name if len(os.fsencode(out.name)) <= _LONGEST else hashlib.blake2b(os.fsencode(out.name)).hexdigest()
    path, first = out.with_name(f".{name}.journal"), json.dumps(dict(identity), sort_keys=True) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is decoding into it; wait for its end or give another folder") from None
        except OSError as error:
            print(
                f"warning: {out}: cannot be locked ({error.strerror}): start no second process there",
                file=sys.stderr,
                flush=True,
            )
        journal = Journal(stream)
        _read(journal, stream, first)
        try:
            yield journal
        except BaseException:
            if not journal.results and not journal.added:
                path.unlink()  # nothing to go on from
            raise
        path.unlink()


def _read(journal: Journal, stream: IO[str], first: str) -> None:
    stream.seek(0)
    whole = 0
    try:
        for number, line in enumerate(stream):
            if not line.endswith("\n") or (number == 0 and line != first):
                break
            if number:
                journal.read(line)
            whole += len(line.encode())
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # what was written while the machine died
    stream.truncate(whole)
    stream.seek(whole)
    if not whole:
        stream.write(first)


def _recognition(mapping: Mapping[str, Any]) -> Recognition:
    rows = tuple(
        EvidenceRow(
            **{
                **_with_tuples(row, "confidences"),
                "evidence": ExitEvidence(**_with_tuples(row["evidence"], "tokens", "nbest_scores", "decoder_scores")),
            }
        )
        for row in mapping["rows"]
    )
    words = tuple(Word(**word) for word in mapping["words"])
    return Recognition(**{**_with_tuples(mapping, "tokens", "token_ids", "seconds"), "rows": rows, "words": words})


def _with_tuples(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {**mapping, **{name: tuple(mapping[name]) for name in names}}


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's."""
    return value.item()
