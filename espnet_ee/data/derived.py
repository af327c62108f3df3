"""Data directories made of others: what every such command refuses, carries over and leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from espnet_ee.data.datadir import DataDir, read_data_dir, refuse_to_replace_files
from espnet_ee.data.draft import DataDirDraft, new_data_dir
from espnet_ee.data.skips import Prepared, Skip, check_limit, settle
from espnet_ee.data.word_times import WORD_TIMES
from espnet_ee.files import refuse_overlap


@dataclass
class DerivedDir:
    """A data directory in the making (``draft``), and the one it is made of (``source``)."""

    source: DataDir
    draft: DataDirDraft
    max_skipped: float

    def settle(self, skips: Iterable[Skip]) -> tuple[Skip, ...]:
        """Lists what is left out. Raises UserError if that is more than may be."""
        listed = tuple(skips)
        settle(listed, len(self.source.utt_ids), self.max_skipped, str(self.source.path), self.draft.folder)
        return listed

    def carry(self, utt_ids: Iterable[str], skips: tuple[Skip, ...] = ()) -> Prepared:
        """Takes transcripts, speakers and known times of words over for the utterances that stay; returns what to tell of the directory."""
        kept = list(utt_ids)
        for name in ("text", "utt2spk"):
            self.draft.tables[name] = {utt_id: self.source.tables[name][utt_id] for utt_id in kept}
        if WORD_TIMES in self.source.notes:
            self.draft.notes[WORD_TIMES] = self.source.notes[WORD_TIMES]
        return Prepared(len(kept), skips)


@contextmanager
def derived_dir(
    source: Path, out: Path, feats_type: str | None = None, max_skipped: float = 0, others: Sequence[Path] = ()
) -> Iterator[DerivedDir]:
    """Reads ``source`` and makes ``out`` as :func:`new_data_dir` does. How many processes (``nj``) help does not change the result.

    Args:
        source: data directory to read.
        out: the directory to make or replace.
        feats_type: what ``source`` must hold: ``raw``, ``extracted``, or what it says itself.
        max_skipped: percentage of the utterances that may be left out because their audio is broken.
        others: further folders that are replaced.

    Raises:
        UserError: ``source`` is broken, or lies in (or has files in) a folder that is to be replaced.
    """
    check_limit(max_skipped)
    for replaced in (out, *others):
        refuse_overlap(source, replaced)
    data = read_data_dir(source, feats_type)
    for replaced in (out, *others):
        refuse_to_replace_files(data, replaced)
    with new_data_dir(out) as draft:
        yield DerivedDir(data, draft, max_skipped)
