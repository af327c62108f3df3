"""How the text of an exit is looked for: the ``search`` of a decoding configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from espnet_ee.errors import UserError
from espnet_ee.files import is_file
from espnet_ee.values import is_number, is_whole

GREEDY, BEAM = "greedy", "beam"
HOTWORD_BOOST = 6.0
_MOST_HOTWORDS, _MOST_BOOST = 10_000, 100.0
_NUMBERS = ("width", "lm_weight", "insertion")
_COUNTS = ("beam", "tokens")
_KENLM = b"mmap lm http://kheafield.com/code"


@dataclass(frozen=True)
class SearchConfig:
    """Greedy, or a beam over prefixes with or without a language model and hotwords.

    Attributes:
        kind: ``greedy`` (the best token of each frame) or ``beam``.
        beam: hypotheses that are kept from frame to frame, and the most in an N-best list.
        lm: of a beam: a language model of the model's tokens, in ARPA's format or as KenLM's binary; None: none.
        lm_weight: times the natural logarithm of its probabilities is added to a hypothesis' score.
        insertion: added for every token of a hypothesis that reached the end, against the short texts that a language
            model likes.
        tokens: the best tokens of a frame that are tried, and no others.
        width: hypotheses that fall so far (natural logarithm) below the best one are dropped.
        blank_skip: frames whose blank has this probability or more are taken for the blank and cost nothing; None: none are.
        hotwords: words, or several with blanks between them, and what is added to a hypothesis' score wherever it says them.
        lexicon: of a beam: a file of the words that it may say, one a line, perhaps with their tokens behind them; None: any.

    Raises:
        UserError: a value is of the wrong kind, or belongs to another kind of search.

    >>> SearchConfig.from_mapping({"kind": "beam", "beam": 4, "hotwords": ["ANNA"]}).hotwords
    (('ANNA', 6.0),)
    """

    kind: str = GREEDY
    beam: int = 10
    lm: str | None = None
    lm_weight: float = 0.5
    insertion: float = 0.0
    tokens: int = 10
    width: float = 50.0
    blank_skip: float | None = None
    hotwords: tuple[tuple[str, float], ...] = ()
    lexicon: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in (GREEDY, BEAM):
            raise UserError(f"search: kind {self.kind!r} is unknown; choose {GREEDY} or {BEAM}")
        for key in _COUNTS:
            if not is_whole(getattr(self, key)):
                raise UserError(f"search: {key} is {getattr(self, key)!r}; give a whole number from 1 on")
        for key, kind in (("lm", "an ARPA file"), ("lexicon", "a file of words")):
            if getattr(self, key) is not None and not isinstance(getattr(self, key), str):
                raise UserError(f"search: {key} is {getattr(self, key)!r}; give the path of {kind}")
        for key in _NUMBERS:
            if not is_number(getattr(self, key)):
                raise UserError(f"search: {key} is {getattr(self, key)!r}; give a number")
        if self.width <= 0:
            raise UserError(f"search: width is {self.width!r}; give a number above 0")
        if self.blank_skip is not None and not (is_number(self.blank_skip) and 0.5 < self.blank_skip <= 1):
            raise UserError(f"search: blank_skip is {self.blank_skip!r}; give a probability above 0.5, such as 0.999")

    @classmethod
    def from_mapping(cls, mapping: Any) -> SearchConfig:
        """Reads the table that stands under ``search``.

        Raises:
            UserError: a key is unknown or of no use to this kind of search, or a value is wrong.
        """
        if not isinstance(mapping, Mapping):
            raise UserError(f"search is {mapping!r}; give 'key: value' lines, such as kind: {BEAM}")
        known = [field.name for field in fields(cls)]
        for key in mapping:
            if key not in (*known, "hotword_boost"):
                raise UserError(f"search: unknown key {key!r}; known keys are {', '.join(known)}, hotword_boost")
        values = {key: value for key, value in mapping.items() if value is not None}
        boost = values.pop("hotword_boost", None)
        if boost is not None and "hotwords" not in values:
            raise UserError("search: hotword_boost is of no use without hotwords; give those, or delete the key")
        if "hotwords" in values:
            values["hotwords"] = read_hotwords(values["hotwords"], HOTWORD_BOOST if boost is None else boost)
        config = cls(**values)
        without_use = known[1:] if config.kind == GREEDY else ["lm_weight"] if config.lm is None else []
        for key in without_use:
            if mapping.get(key) is not None:
                needed = f"kind: {BEAM}" if config.kind == GREEDY else "an lm"
                raise UserError(f"search: {key} is of no use without {needed}; give that, or delete the key")
        return config

    def to_mapping(self) -> dict[str, Any]:
        """What :meth:`from_mapping` reads back; of what is seldom set, only what differs from the default."""
        if self.kind == GREEDY:
            return {"kind": GREEDY}
        mapping, default = asdict(self), asdict(SearchConfig(BEAM))
        mapping["hotwords"] = dict(self.hotwords)
        rare = [key for key in ("tokens", "width", "blank_skip", "lexicon") if mapping[key] == default[key]]
        rare += [] if self.hotwords else ["hotwords"]
        rare += [] if self.lm is not None else ["lm", "lm_weight"]
        return {key: value for key, value in mapping.items() if key not in rare}

    def beside(self, folder: Path) -> SearchConfig:
        """With its files' paths, if they are not absolute, looked up from a folder."""
        return self.with_files(lambda path: str(folder / path))

    @property
    def files(self) -> dict[str, str]:
        """The files that it reads, by key."""
        return {key: getattr(self, key) for key in ("lm", "lexicon") if getattr(self, key) is not None}

    def with_files(self, moved: Callable[[str], str]) -> SearchConfig:
        """With another path for each of its files."""
        paths: dict[str, Any] = {key: moved(path) for key, path in self.files.items()}
        return replace(self, **paths)

    def with_hotwords(self, hotwords: Any, boost: float = HOTWORD_BOOST) -> SearchConfig:
        """With :func:`read_hotwords` in place of its own; a greedy search, which has no use for them, becomes a beam."""
        return replace(self, kind=BEAM, hotwords=read_hotwords(hotwords, boost))

    def __str__(self) -> str:
        """In a few words, for a page; the language model by its file's name."""
        if self.kind == GREEDY:
            return GREEDY
        parts = [f"beam {self.beam}"]
        if self.lm is not None:
            parts.append(f"language model {Path(self.lm).name} (weight {self.lm_weight:g})")
        if self.insertion:
            parts.append(f"{self.insertion:+g} a token")
        if self.blank_skip is not None:
            parts.append(f"blank frames from {self.blank_skip:g} on skipped")
        if self.lexicon is not None:
            parts.append(f"words of {Path(self.lexicon).name} alone")
        return ", ".join([*parts, *([f"{len(self.hotwords)} hotwords"] if self.hotwords else [])])


def read_hotwords(words: Any, boost: Any = HOTWORD_BOOST) -> tuple[tuple[str, float], ...]:
    """Hotwords as a configuration or a caller gives them.

    Args:
        words: a table of words and boosts, or a list of words.
        boost: of the words of a list.

    Raises:
        UserError: a word is none, a boost is no number above 0, or there are too many.

    >>> read_hotwords({"NEW  YORK": 4})
    (('NEW YORK', 4.0),)
    """
    if isinstance(words, list | tuple):
        words = None if any(isinstance(word, list | dict) for word in words) else dict.fromkeys(words, boost)
    if not isinstance(words, Mapping) or len(words) > _MOST_HOTWORDS:
        raise UserError(f"search: hotwords are a list of at most {_MOST_HOTWORDS} words, or 'word: boost' lines")
    hotwords: dict[str, float] = {}
    for word, value in words.items():
        if not isinstance(word, str) or not word.split():
            raise UserError(f"search: the hotword {word!r} is no word; give words, those that YAML takes for others in quotes")
        if not is_number(value) or not 0 < value <= _MOST_BOOST:
            raise UserError(
                f"search: the boost of the hotword {word!r} is {value!r}; give a number above 0, at most {_MOST_BOOST:g}"
            )
        hotwords[" ".join(word.split())] = float(value)
    return tuple(hotwords.items())


def is_kenlm_binary(path: str | Path) -> bool:
    """Whether a file begins as those that KenLM's ``build_binary`` makes."""
    if not is_file(path):
        return False
    with open(path, "rb") as stream:
        return stream.read(len(_KENLM)) == _KENLM
