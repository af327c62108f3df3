"""Decodes utterances and writes what ESPnet's scoring and ours read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ee.data.inputs import Input
from espnet_ee.decode.journal import Journal
from espnet_ee.decode.loop import recognise
from espnet_ee.decode.recognition import Recognition
from espnet_ee.decode.session import ExitSession, OutOfMemoryError, UtteranceError
from espnet_ee.errors import UserError
from espnet_ee.files import atomic_dir, refuse_other_folder, write_yaml
from espnet_ee.kaldi import write_scp
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.table import EvidenceTable, Utterance, write_table
from espnet_ee.score.kept import write_failed, write_timing

SUMMARY = "decode.yaml"
BEST = "1best_recog"
FILES: dict[str, Callable[[Recognition], str]] = {
    f"{BEST}/text": lambda result: result.text,
    f"{BEST}/token": lambda result: " ".join(result.tokens),
    f"{BEST}/token_int": lambda result: " ".join(map(str, result.token_ids)),
    f"{BEST}/score": lambda result: repr(result.score),
    "utt2exit": lambda result: str(result.exit_layer),
    "utt2macs": lambda result: str(result.macs),
}
"""Kaldi tables of a decoding, as ESPnet's asr_inference calls them, and where each utterance stopped; what each says of it."""
_HOPELESS = 20  # so many utterances that cannot be decoded, and none that can: it is not the utterances

Results = dict[str, Recognition]
Reasons = dict[str, str]


@dataclass(frozen=True)
class Decoding:
    """All results of one set, by utterance id in sorted order, with the time that recognising took.

    Attributes:
        results: what was recognised.
        audio_seconds: the length of each.
        decode_seconds: of computing.
        failed: why the others could not be decoded.
    """

    results: Results
    audio_seconds: dict[str, float]
    decode_seconds: float
    failed: Reasons

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
    journal: Journal | None = None,
) -> Decoding:
    """Recognises all inputs that can be. Reading files is not counted as decoding time.

    Args:
        session: the engine.
        config: when to stop, how many utterances at once (neighbours in length share a batch), and the threads.
        inputs: utterances, in any order: results do not depend on it.
        keep_every_exit: see :func:`espnet_ee.decode.loop.recognise`.
        nbest: likewise.
        progress: called after each batch with the number done and the total.
        journal: of an earlier run; what it has is not done again.

    Raises:
        UserError: there is no utterance, or none that can be recognised (the first is named).
    """
    if not inputs:
        raise UserError("there is no utterance to recognise; see the data directory")
    session.use_threads(config.num_threads)
    journal = journal or Journal()
    results, failed, spent = dict(journal.results), dict[str, str](), journal.seconds

    def recognise_some(batch: Sequence[np.ndarray]) -> list[Recognition]:
        return recognise(session, config, batch, keep_every_exit, nbest)

    for batch in _batches([item for item in inputs if item.utt_id not in results], config.batch_size):
        loaded, unreadable = _load(batch)
        started = time.perf_counter()
        recognised, refused = recognise_each(recognise_some, loaded)
        seconds = time.perf_counter() - started
        spent += seconds
        journal.add(recognised, seconds)
        results |= recognised
        failed |= {**unreadable, **refused}
        if failed and not results and len(failed) >= min(_HOPELESS, len(inputs)):
            raise UserError("{}: {}".format(*next(iter(failed.items()))))
        progress(len(results) + len(failed), len(inputs))
    lengths = {item.utt_id: item.seconds for item in inputs}
    order = sorted(results)
    return Decoding({key: results[key] for key in order}, {key: lengths[key] for key in order}, spent, failed)


def _load(batch: Sequence[Input]) -> tuple[dict[str, np.ndarray], Reasons]:
    loaded, failed = {}, {}
    for item in batch:
        try:
            loaded[item.utt_id] = item.load()
        except UserError as error:
            failed[item.utt_id] = str(error)
    return loaded, failed


def recognise_each(
    recognise_some: Callable[[Sequence[np.ndarray]], list[Recognition]], batch: Mapping[str, np.ndarray]
) -> tuple[Results, Reasons]:
    """The results of a batch, and why the others of it have none; where it does not fit into memory, it is recognised in halves."""
    names = list(batch)
    if not names:
        return {}, {}
    try:
        return dict(zip(names, recognise_some([batch[name] for name in names]), strict=True)), {}
    except UtteranceError as error:
        bad, reason = {names[error.place]}, str(error)
    except OutOfMemoryError as error:
        if len(names) > 1:
            halves = names[: len(names) // 2], names[len(names) // 2 :]
            (first, refused), (second, others) = (
                recognise_each(recognise_some, {name: batch[name] for name in half}) for half in halves
            )
            return {**first, **second}, {**refused, **others}
        bad, reason = set(names), str(error)
    results, failed = recognise_each(recognise_some, {name: batch[name] for name in names if name not in bad})
    return results, {**failed, **dict.fromkeys(bad, reason)}


def _batches(inputs: Sequence[Input], batch_size: int) -> Iterator[list[Input]]:
    ordered = sorted(inputs, key=lambda item: (item.seconds, item.utt_id)) if batch_size > 1 else list(inputs)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def write_decoding(path: str | Path, decoding: Decoding, facts: Mapping[str, Any], every_exit: bool) -> None:
    """Writes a decode directory as a whole: it replaces an earlier one, or nothing changes.

    ``text``, which stage 13 of ESPnet's recipes scores (a line for every utterance: it pairs lines by their number);
    ``1best_recog/{text,token,token_int,score}`` as ESPnet's asr_inference; ``utt2exit``, ``utt2macs``, ``utt2dur``;
    ``decode.yaml``; with every exit also ``evidence.tsv`` and ``timing.tsv``; ``failed``, if anything could not be decoded.

    ``facts`` is what ``decode.yaml`` holds besides counts and times (policy, versions, ...).

    Raises:
        UserError: another folder stands there; see :func:`check_output_dir`.
    """
    check_output_dir(path)
    results = decoding.results
    with atomic_dir(path) as folder:
        for name, value_of in FILES.items():
            write_scp(folder / name, {key: value_of(result) for key, result in results.items()})
        write_scp(folder / "text", {**dict.fromkeys(decoding.failed, ""), **{key: r.text for key, r in results.items()}})
        write_scp(folder / "utt2dur", {key: repr(value) for key, value in decoding.audio_seconds.items()})
        if every_exit:
            table = evidence_table(decoding)
            write_table(folder / "evidence.tsv", table)
            write_timing(folder / "timing.tsv", table.exit_layers, {key: result.seconds for key, result in results.items()})
        write_failed(folder, decoding.failed)
        summary = {
            **facts,
            "utterances": len(results),
            **({"failed": len(decoding.failed)} if decoding.failed else {}),
            "audio_seconds": round(sum(decoding.audio_seconds.values()), 3),
            "decode_seconds": round(decoding.decode_seconds, 3),
            "rtf": round(decoding.rtf, 5),
        }
        write_yaml(folder / SUMMARY, summary)


def check_output_dir(path: str | Path) -> None:
    """Raises UserError if a folder that is no earlier decoding would be replaced: data, or a whole experiment."""
    refuse_other_folder(Path(path), (SUMMARY,))


def evidence_table(decoding: Decoding) -> EvidenceTable:
    """The evidence of a decoding that kept every exit."""
    utterances = {key: Utterance(decoding.audio_seconds[key], result.rows) for key, result in decoding.results.items()}
    layers = tuple(row.evidence.layer for row in next(iter(utterances.values())).rows)
    return EvidenceTable(layers, utterances)
