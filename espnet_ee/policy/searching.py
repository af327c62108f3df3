"""How the text of an exit is looked for: the ``search`` of a decoding configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from espnet_ee.errors import UserError

GREEDY, BEAM = "greedy", "beam"
_NUMBERS = ("lm_weight", "insertion")


@dataclass(frozen=True)
class SearchConfig:
    """Greedy, or a beam over prefixes with or without a language model.

    Attributes:
        kind: ``greedy`` (the best token of each frame) or ``beam``.
        beam: hypotheses that are kept from frame to frame, and the most in an N-best list.
        lm: of a beam: a language model of the model's tokens in ARPA's format; None: none.
        lm_weight: times the natural logarithm of its probabilities is added to a hypothesis' score.
        insertion: added for every token of a hypothesis that reached the end, against the short texts that a language
            model likes.

    Raises:
        UserError: a value is of the wrong kind, or belongs to another kind of search.

    >>> SearchConfig.from_mapping({"kind": "beam", "beam": 4})
    SearchConfig(kind='beam', beam=4, lm=None, lm_weight=0.5, insertion=0.0)
    """

    kind: str = GREEDY
    beam: int = 10
    lm: str | None = None
    lm_weight: float = 0.5
    insertion: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in (GREEDY, BEAM):
            raise UserError(f"search: kind {self.kind!r} is unknown; choose {GREEDY} or {BEAM}")
        if isinstance(self.beam, bool) or not isinstance(self.beam, int) or self.beam < 1:
            raise UserError(f"search: beam is {self.beam!r}; give a whole number from 1 on")
        if self.lm is not None and not isinstance(self.lm, str):
            raise UserError(f"search: lm is {self.lm!r}; give the path of an ARPA file")
        for key in _NUMBERS:
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"search: {key} is {value!r}; give a number")

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
            if key not in known:
                raise UserError(f"search: unknown key {key!r}; known keys are {', '.join(known)}")
        config = cls(**{key: value for key, value in mapping.items() if value is not None})
        without_use = known[1:] if config.kind == GREEDY else ["lm_weight"] if config.lm is None else []
        for key in without_use:
            if mapping.get(key) is not None:
                needed = f"kind: {BEAM}" if config.kind == GREEDY else "an lm"
                raise UserError(f"search: {key} is of no use without {needed}; give that, or delete the key")
        return config

    def to_mapping(self) -> dict[str, Any]:
        """What :meth:`from_mapping` reads back."""
        if self.kind == GREEDY:
            return {"kind": GREEDY}
        mapping = asdict(self)
        return mapping if self.lm is not None else {key: mapping[key] for key in ("kind", "beam", "insertion")}

    def beside(self, folder: Path) -> SearchConfig:
        """With the language model's path, if it is not absolute, looked up from a folder."""
        if self.lm is None:
            return self
        return SearchConfig(self.kind, self.beam, str(folder / self.lm), self.lm_weight, self.insertion)
