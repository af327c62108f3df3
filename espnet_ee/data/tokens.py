"""Token lists as ESPnet's recipes make them, and the sentencepiece model behind a BPE list."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import atomic_write
from espnet_ee.kaldi import read_scp

BLANK, UNKNOWN, SPACE, END = "<blank>", "<unk>", "<space>", "<sos/eos>"


def make_tokens(
    texts: Sequence[Path], token_type: str, out: Path, nbpe: int | None = None, model_type: str = "bpe"
) -> list[str]:
    """Writes ``out/tokens.txt``, and for ``bpe`` the model ``out/bpe.model`` that belongs to it.

    Args:
        texts: Kaldi text files of the training data.
        token_type: ``char`` or ``bpe``.
        out: folder to write into.
        nbpe: length of a bpe list: blank first, unknown second, start/end of sentence last.
        model_type: what sentencepiece trains: ``bpe`` or ``unigram``.

    Raises:
        UserError: the texts are missing or empty, or do not allow so many or so few bpe tokens.
    """
    if (token_type == "bpe") != (nbpe is not None):
        raise UsageError("--nbpe: give it with --token_type bpe, and only with it")
    sentences = read_sentences(texts)
    if nbpe is None:
        tokens = char_tokens(sentences)
    else:
        model, tokens = bpe_tokens(sentences, nbpe, model_type)
        with atomic_write(out / "bpe.model", "wb") as stream:
            stream.write(model)
    with atomic_write(out / "tokens.txt") as stream:
        stream.writelines(f"{token}\n" for token in tokens)
    return tokens


def read_sentences(texts: Sequence[Path]) -> list[str]:
    """The transcripts of several text files, without the empty ones. Raises UserError if there is none."""
    sentences = [sentence for path in texts for sentence in read_scp(path, allow_empty=True).values() if sentence]
    if not sentences:
        raise UserError(f"{texts[0]}: no transcript in it; tokens cannot be made of nothing")
    return sentences


def char_tokens(sentences: Sequence[str]) -> list[str]:
    """Characters by falling frequency, then code point.

    >>> char_tokens(["AB A"])
    ['<blank>', '<unk>', 'A', '<space>', 'B', '<sos/eos>']
    """
    counts = Counter(character for sentence in sentences for character in sentence)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    return [BLANK, UNKNOWN, *(SPACE if character == " " else character for character in ordered), END]


def bpe_tokens(sentences: Sequence[str], nbpe: int, model_type: str) -> tuple[bytes, list[str]]:
    """Trains sentencepiece, the same bytes every time.

    Returns:
        The serialised model, and the list of ``nbpe`` tokens as ESPnet's asr.sh makes it: sentencepiece's first three
        pieces (unknown, start, end) replaced by ESPnet's.
    """
    import sentencepiece

    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=writer,
            vocab_size=nbpe,
            model_type=model_type,
            character_coverage=1.0,
            num_threads=1,  # the order of additions, and so ties between pieces, depends on it
            max_sentence_length=1 << 20,  # the default silently leaves out long transcripts
            minloglevel=2,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise _training_error(str(error), nbpe) from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=writer.getvalue())
    pieces = [processor.id_to_piece(index) for index in range(3, processor.get_piece_size())]
    return writer.getvalue(), [BLANK, UNKNOWN, *pieces, END]


def _training_error(message: str, nbpe: int) -> UserError:
    too_high = re.search(r"value <= (\d+)", message)
    if too_high:
        return UserError(f"--nbpe {nbpe}: too many for this text; {too_high[1]} is the highest possible")
    too_low = re.search(r"required_chars\D*\d+ vs (\d+)", message)
    if too_low:
        return UserError(f"--nbpe {nbpe}: too few for the characters of this text; {too_low[1]} is the lowest possible")
    return UserError(f"--nbpe {nbpe}: sentencepiece failed: {message}; give another number or check the text")
