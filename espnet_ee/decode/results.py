"""Decodes utterances and writes what ESPnet's scoring and ours read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espnet_ee.data.inputs import Input
from espnet_ee.decode.loop import ExitSession, Recognition, UtteranceError, recognise
from espnet_ee.errors import UserError
from espnet_ee.files import atomic_dir, refuse_other_folder
from espnet_ee.kaldi import write_scp
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.table import EvidenceTable, Utterance, write_table

SUMMARY = "decode.yaml"


@dataclass(frozen=True)
class Decoding:
    """All results of one set, by utterance id in sorted order, with the time that recognising took."""

    results: dict[str, Recognition]
    audio_seconds: dict[str, float]
    decode_seconds: float

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of computing per second of audio."""
        return self.decode_seconds / sum(self.audio_seconds.values())


def decode(
    session: ExitSession[Any],
    config: DecodingConfig,
    inputs: Sequence[Input],
    keep_every_exit: bool = False,
    nbest: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Decoding:
    """Recognises all inputs. Reading files is not counted as decoding time.

    Args:
        session: the engine.
        config: when to stop, how many utterances at once (neighbours in length share a batch), and the threads.
        inputs: utterances, in any order: results do not depend on it.
        keep_every_exit: see :func:`espnet_ee.decode.loop.recognise`.
        nbest: likewise.
        progress: called after each batch with the number done and the total.

    Raises:
        UserError: there is no utterance, or one cannot be recognised; it is named.
    """
    if not inputs:
        raise UserError("there is no utterance to recognise; see the data directory")
    session.use_threads(config.num_threads)
    results: dict[str, Recognition] = {}
    spent = 0.0
    for batch in _batches(inputs, config.batch_size):
        loaded = [item.load() for item in batch]
        started = time.perf_counter()
        try:
            recognised = recognise(session, config, loaded, keep_every_exit, nbest)
        except UtteranceError as error:
            raise UserError(f"{batch[error.place].utt_id}: {error}") from None
        spent += time.perf_counter() - started
        results.update((item.utt_id, result) for item, result in zip(batch, recognised, strict=True))
        progress(len(results), len(inputs))
    order = sorted(results)
    seconds = {item.utt_id: item.seconds for item in inputs}
    return Decoding({key: results[key] for key in order}, {key: seconds[key] for key in order}, spent)


def _batches(inputs: Sequence[Input], batch_size: int) -> Iterator[list[Input]]:
    ordered = sorted(inputs, key=lambda item: (item.seconds, item.utt_id)) if batch_size > 1 else list(inputs)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def write_decoding(path: str | Path, decoding: Decoding, facts: Mapping[str, Any], every_exit: bool) -> None:
    """Writes a decode directory as a whole: it replaces what was there, or nothing changes.

    ``1best_recog/{text,token,token_int,score}`` as ESPnet's asr_inference; ``utt2exit``, ``utt2macs``, ``utt2dur``;
    ``decode.yaml``; with every exit also ``evidence.tsv`` and ``timing.tsv``.

    Args:
        path: the directory.
        decoding: from :func:`decode`.
        facts: what ``decode.yaml`` holds besides counts and times (policy, versions, ...).
        every_exit: whether every exit was kept.

    Raises:
        UserError: another folder stands there; see :func:`check_output_dir`.
    """
    check_output_dir(path)
    results = decoding.results
    with atomic_dir(path) as folder:
        best = folder / "1best_recog"
        write_scp(best / "text", {key: result.text for key, result in results.items()})
        write_scp(best / "token", {key: " ".join(result.tokens) for key, result in results.items()})
        write_scp(best / "token_int", {key: " ".join(map(str, r.token_ids)) for key, r in results.items()})
        write_scp(best / "score", {key: repr(result.score) for key, result in results.items()})
        write_scp(folder / "utt2exit", {key: str(result.exit_layer) for key, result in results.items()})
        write_scp(folder / "utt2macs", {key: str(result.macs) for key, result in results.items()})
        write_scp(folder / "utt2dur", {key: repr(value) for key, value in decoding.audio_seconds.items()})
        if every_exit:
            write_table(folder / "evidence.tsv", _table(decoding))
            _write_timing(folder / "timing.tsv", results)
        summary = {
            **facts,
            "utterances": len(results),
            "audio_seconds": round(sum(decoding.audio_seconds.values()), 3),
            "decode_seconds": round(decoding.decode_seconds, 3),
            "rtf": round(decoding.rtf, 5),
        }
        (folder / SUMMARY).write_text(yaml.safe_dump(summary, sort_keys=False), encoding="utf-8")


def check_output_dir(path: str | Path) -> None:
    """Raises UserError if a folder that is no earlier decoding would be replaced: data, or a whole experiment."""
    refuse_other_folder(Path(path), (SUMMARY,))


def _table(decoding: Decoding) -> EvidenceTable:
    utterances = {key: Utterance(decoding.audio_seconds[key], result.rows) for key, result in decoding.results.items()}
    layers = tuple(row.evidence.layer for row in next(iter(utterances.values())).rows)
    return EvidenceTable(layers, utterances)


def _write_timing(path: Path, results: Mapping[str, Recognition]) -> None:
    lines = ["utt_id\texit_layer\tseconds\n"]
    for key, result in results.items():
        for row, seconds in zip(result.rows, result.seconds, strict=True):
            lines.append(f"{key}\t{row.evidence.layer}\t{seconds!r}\n")
    path.write_text("".join(lines), encoding="utf-8")
