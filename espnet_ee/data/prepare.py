"""From a corpus to Kaldi data directories."""

from __future__ import annotations

from pathlib import Path

from espnet_ee.data.corpus import Corpus
from espnet_ee.data.datadir import Table, new_data_dir
from espnet_ee.errors import UserError


def prepare_set(corpus: Corpus, set_name: str, out: Path) -> int:
    """Writes ``out`` from one set of a corpus and returns how many utterances it has.

    Raises:
        UserError: the corpus is missing or broken, or two utterances have one name.
    """
    wav, text, utt2spk = Table(), Table(), Table()
    for utterance in corpus.utterances(set_name):
        utt_id = utterance.utt_id
        if utt_id in wav:
            raise UserError(f"{utterance.audio}: the utterance {utt_id!r} was there before as {wav[utt_id]}; keep one")
        wav[utt_id], text[utt_id] = str(utterance.audio), utterance.text
        utt2spk[utt_id] = utterance.speaker
    with new_data_dir(out) as draft:
        draft.tables.update({"wav.scp": wav, "text": text, "utt2spk": utt2spk})
    return len(wav)
