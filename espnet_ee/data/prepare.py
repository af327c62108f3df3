"""From a corpus to Kaldi data directories."""

from __future__ import annotations

from pathlib import Path

from espnet_ee.data.corpus import Corpus, Utterance
from espnet_ee.data.datadir import Table
from espnet_ee.data.draft import new_data_dir
from espnet_ee.data.skips import Prepared, Skip, check_limit, settle
from espnet_ee.data.word_times import WORD_TIMES, word_times_text
from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write
from espnet_ee.text import invisible_signs, without_invisible


def prepare_set(corpus: Corpus, set_name: str, out: Path, max_skipped: float = 0) -> Prepared:
    """Makes or replaces the data directory ``out`` from one set of a corpus; invisible signs of its texts are removed, and counted.

    ``max_skipped`` per cent of the set may be left out because they are broken; 0 for sets that are scored.

    Raises:
        UserError: the corpus is missing or too broken, or two utterances have one name.
    """
    check_limit(max_skipped)
    records = list(corpus.utterances(set_name))
    skips = tuple(record for record in records if isinstance(record, Skip))
    utterances = [record for record in records if not isinstance(record, Skip)]
    with new_data_dir(out) as draft:
        settle(skips, len(records), max_skipped, f"{corpus.name}: {set_name}", draft.folder)
        draft.tables.update(_tables(utterances))
        times = corpus.word_times()
        if known := {utterance.utt_id: times[utterance.utt_id] for utterance in utterances if utterance.utt_id in times}:
            draft.notes[WORD_TIMES] = word_times_text(known)
    invisible = sum(len(invisible_signs(utterance.text)) for utterance in utterances)
    return Prepared(len(utterances), skips, corpus.distributed(set_name), invisible)


def _tables(utterances: list[Utterance]) -> dict[str, Table]:
    tables: dict[str, Table] = {"wav.scp": {}, "text": {}, "utt2spk": {}}
    for utterance in utterances:
        utt_id, audio = utterance.utt_id, str(utterance.audio)
        recording = utt_id
        if utterance.span is not None:
            recording = utterance.audio.stem
            span = f"{recording} {utterance.span.start} {utterance.span.end}"
            tables.setdefault("segments", {})[utt_id] = span
        before = tables["wav.scp"].get(recording, audio)
        if utt_id in tables["text"] or before != audio:
            raise UserError(f"{audio}: the utterance {utt_id!r} was there before as {before}; keep one")
        tables["wav.scp"][recording] = audio
        tables["text"][utt_id], tables["utt2spk"][utt_id] = without_invisible(utterance.text), utterance.speaker
    return tables


def write_lm_text(corpus: Corpus, out: Path) -> int:
    """Writes the corpus' text for language models, ``NUMBER SENTENCE`` a line; returns the number of sentences."""
    count = 0
    with atomic_write(out) as stream:
        for count, sentence in enumerate(corpus.lm_sentences(), 1):
            stream.write(f"{corpus.name}_lm_{count:08d} {sentence}\n")
    return count
