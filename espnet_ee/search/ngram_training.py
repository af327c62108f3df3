"""Makes the n-gram language model of tokens that a beam search takes, by KenLM's lmplz where it is present, else by kaldingram."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write, is_file, read_lines
from espnet_ee.search.arpa import UNKNOWN, read_arpa

TOOLS = ("lmplz", "kaldingram")
LEAST_ORDER, MOST_ORDER = 2, 5  # kaldingram's
ORDERS = {"char": 5, "bpe": 3}  # a character says less than a piece
_BELOW_RAREST = 1.0  # decimal logarithm: how much less probable than the rarest token one is that the text lacks


def train_ngram(
    texts: Sequence[Path], token_dir: Path, token_type: str, out: Path, order: int | None = None, tool: str | None = None
) -> str:
    """Writes an ARPA file whose words are a model's tokens.

    Args:
        texts: Kaldi text files (an id and a sentence a line).
        token_dir: folder of the model's ``tokens.txt`` and, for ``bpe``, ``bpe.model``.
        token_type: ``char`` or ``bpe``.
        out: the file.
        order: n, 2 to 5; None: 5 of characters, 3 of pieces.
        tool: of ``TOOLS``; None: the first that is present.

    Returns:
        What was made, for people.

    Raises:
        UserError: a file is missing or broken, there is no sentence, or no tool.
    """
    order = ORDERS[token_type] if order is None else order
    if not LEAST_ORDER <= order <= MOST_ORDER:
        raise UserError(f"--order {order}: give {LEAST_ORDER} to {MOST_ORDER}")
    tokens = read_lines(token_dir / "tokens.txt")
    spell = _tokeniser(token_dir, token_type, set(tokens))
    tool = tool or _present_tool()
    with tempfile.TemporaryDirectory(prefix="espnet-ee-lm-") as name:
        folder = Path(name)
        count = _write_sentences(folder / "text", texts, spell)
        _run(tool, order, folder)
        counts = [0] * order
        for words, _, _ in read_arpa(folder / "lm.arpa"):
            counts[len(words) - 1] += 1
        with atomic_write(out) as stream:
            stream.writelines(_with_unknown(folder / "lm.arpa"))
    sizes = ", ".join(f"{size} of order {number}" for number, size in enumerate(counts, 1))
    return f"{order}-gram model of {count} sentences by {tool}: {sizes}"


def _tokeniser(token_dir: Path, token_type: str, known: set[str]) -> Callable[[str], list[str]]:
    if token_type == "char":
        return lambda sentence: [token if token in known else UNKNOWN for token in _characters(sentence)]
    import sentencepiece

    path = token_dir / "bpe.model"
    if not path.is_file():
        raise UserError(f"{path}: no such file; run stage 5 first")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise UserError(f"{path}: no model of sentencepiece; run stage 5 again") from None
    return lambda sentence: [piece if piece in known else UNKNOWN for piece in processor.encode(sentence, out_type=str)]


def _characters(sentence: str) -> Iterator[str]:
    return ("<space>" if sign == " " else sign for sign in sentence)


def _write_sentences(path: Path, texts: Sequence[Path], spell: Callable[[str], list[str]]) -> int:
    count = 0
    with open(path, "w", encoding="utf-8") as stream:
        for text in texts:
            for sentence in _sentences(text):
                count += 1
                stream.write(" ".join(spell(sentence)) + "\n")
    if not count:
        raise UserError(f"{texts[0]}: no sentence in it; a language model cannot be made of nothing")
    return count


def _sentences(path: Path) -> Iterator[str]:
    """Those of a Kaldi text file, one by one: a text for language models may be larger than memory."""
    if not is_file(path):
        raise UserError(f"{path}: no such file; give a Kaldi text file, an id and a sentence a line")
    try:
        with open(path, encoding="utf-8") as stream:
            for line in stream:
                words = line.split()[1:]
                if words:
                    yield " ".join(words)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; convert the file (iconv -t UTF-8)") from None


def _present_tool() -> str:
    if shutil.which(TOOLS[0]):
        return TOOLS[0]
    if find_spec(TOOLS[1]):
        return TOOLS[1]
    raise UserError("neither lmplz (KenLM) nor kaldingram is installed; in the project's folder: pip install -e '.[lm]'")


def _run(tool: str, order: int, folder: Path) -> None:
    text, lm = str(folder / "text"), str(folder / "lm.arpa")
    if tool == "lmplz":
        command = ["lmplz", "-o", str(order), "-S", "1G", "-T", str(folder), "--discount_fallback", "--skip_symbols"]
        command += ["--text", text, "--arpa", lm]
    else:
        command = [sys.executable, "-m", "kaldingram.cli", "train", "--ngram-order", str(order), "--text", text, "--lm", lm]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not Path(lm).is_file():
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it says nothing")
        raise UserError(f"{tool} made no language model: {last.strip()}; is the text of sentences, one a line?")


def _with_unknown(path: Path) -> Iterator[str]:
    """The lines of an ARPA file, with an <unk> if it has none: tokens that the text lacks would else be impossible."""
    unigrams = {words[0]: probability for words, probability, _ in read_arpa(path) if len(words) == 1}
    adds = UNKNOWN not in unigrams
    rarest = min((probability for probability in unigrams.values() if probability > -90), default=-1.0)
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            if adds and line.startswith("ngram 1="):
                yield f"ngram 1={len(unigrams) + 1}\n"
                continue
            yield line
            if adds and line.strip() == "\\1-grams:":
                yield f"{rarest - _BELOW_RAREST:.6f}\t{UNKNOWN}\n"
