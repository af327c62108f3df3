"""Where ``espnet-ee transcribe`` writes: standard output, or a file for each recording, which is not made again for nothing."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from espnet_ee import __version__
from espnet_ee.cli.reports import Progress
from espnet_ee.data.audio_files import AudioFile
from espnet_ee.decode.formats import FORMATS
from espnet_ee.files import atomic_write, file_digest, files_digest, is_file
from espnet_ee.policy.table import escape

if TYPE_CHECKING:
    from espnet_ee.api import EarlyExitASR
    from espnet_ee.data.recording import Recording
    from espnet_ee.decode.journal import Journal
    from espnet_ee.decode.transcript import Transcript

DONE = ".transcribed"
"""In the folder of ``--out``: a line of JSON for each file that was written, and what it was made of with what."""


class Outputs:
    """Takes the transcripts of a command.

    In a folder, what is there of the same audio, model and settings is left out, and a long recording that was interrupted goes
    on where it was.

    Args:
        options: of the command.
        several: whether there are several recordings, so that texts need a name.
        identity: what recognises and how; None: nothing is written to a folder, or transcripts depend on more than that, so that
            nothing is left out.
    """

    def __init__(self, options: argparse.Namespace, several: bool, identity: Mapping[str, Any] | None) -> None:
        self._format, self._out, self._several = options.format, options.out, several
        self._identity = identity
        self._done = _read(options.out / DONE) if self._identity is not None else {}
        self._made_of: dict[AudioFile, dict[str, Any]] = {}  # as they were when they were opened

    def left(self, files: Sequence[AudioFile]) -> list[AudioFile]:
        """Those that are to be transcribed."""
        return [file for file in files if not self._is_done(file)]

    def journal(self, audio: AudioFile, recording: Recording) -> AbstractContextManager[Journal]:
        """What is noted of a recording that is opened, of one in several pieces as they are done."""
        from espnet_ee.decode.journal import Journal, open_journal

        if self._identity is None:
            return nullcontext(Journal())
        self._made_of[audio] = self._of(audio)
        if len(recording.cuts) < 3:
            return nullcontext(Journal())
        return open_journal(self._out / self._name(audio), self._made_of[audio])

    def write(self, transcript: Transcript, progress: Progress) -> None:
        """Writes a transcript, whole or not at all."""
        content, audio = FORMATS[self._format](transcript), transcript.audio
        if self._out is None:
            name = f"{escape(audio.name)}\t" if self._several and self._format == "text" else ""
            progress.clear()
            print(f"{name}{content}", end="", flush=True)
            return
        with atomic_write(self._out / self._name(audio)) as stream:
            stream.write(content)
        if audio in self._made_of:
            with open(self._out / DONE, "a", encoding="utf-8") as stream:
                stream.write(json.dumps([self._name(audio), _digest(self._made_of.pop(audio))]) + "\n")

    def _name(self, audio: AudioFile) -> str:
        return f"{audio.stem}.{'txt' if self._format == 'text' else self._format}"

    def _of(self, audio: AudioFile) -> dict[str, Any]:
        """What a transcript is made of: an audio file that was changed has another time or size."""
        facts = audio.path.stat()
        return {**(self._identity or {}), "audio": [str(audio.path.absolute()), facts.st_size, facts.st_mtime_ns]}

    def _is_done(self, audio: AudioFile) -> bool:
        name = self._name(audio)
        if name not in self._done or not is_file(audio.path) or not is_file(self._out / name):
            return False
        return self._done[name] == _digest(self._of(audio))


def identity_of(recogniser: EarlyExitASR, options: argparse.Namespace) -> dict[str, Any]:
    """What recognises and how, as far as transcripts depend on it: not the number of processes, threads, or pieces at once."""
    mapping = recogniser.config.to_mapping()
    return {
        "version": __version__,
        "model": _digest_of_model(recogniser.session),
        "name": recogniser.policy_name,
        "config": {key: value for key, value in mapping.items() if key not in ("batch_size", "num_threads")},
        "files": {key: file_digest(path) for key, path in recogniser.config.search.files.items()},
        "max_segment_seconds": options.max_segment_seconds,
        "cut": options.cut,
        "format": options.format,
    }


def _digest_of_model(session: Any) -> str:
    """Of the parameters: torch's, or an export's files."""
    if hasattr(session, "export"):
        export, kind = session.export, session.precision
        paths = [export.path, *(segment.paths[kind] for segment in export.segments if is_file(segment.paths[kind]))]
        return f"{kind} {files_digest(paths)}"
    from espnet_ee.store.onnx_description import fingerprint  # imports torch

    return fingerprint(session.model)


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(dict(identity), sort_keys=True).encode(), digest_size=16).hexdigest()


def _read(path: Any) -> dict[str, str]:
    """By name of a file, what it was made of; what was written while the machine died is passed over."""
    done: dict[str, str] = {}
    if is_file(path):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                name, digest = json.loads(line)
                done[str(name)] = str(digest)
            except (ValueError, TypeError):
                continue
    return done
