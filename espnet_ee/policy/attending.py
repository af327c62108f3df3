"""The ``search`` of a decoding configuration that reads an exit's attention decoder, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from espnet_ee.errors import UserError
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.values import is_number, is_whole

ATTENTION = "attention"


@dataclass(frozen=True)
class AttentionConfig:
    """ESPnet's joint CTC/attention beam search: a text's score is ``ctc_weight`` times CTC's and the rest times the decoder's.

    Attributes:
        beam: hypotheses that are kept from token to token, and the most in an N-best list.
        ctc_weight: the weight of CTC, from 0 to below 1.
        maxlenratio: a text has at most so many tokens per encoder frame, below 0 so many at all; 0: as many as there are frames,
            and the search ends when nothing better is to be expected.

    Raises:
        UserError: a value is of the wrong kind.

    >>> AttentionConfig.from_mapping({"kind": "attention", "beam": 4})
    AttentionConfig(beam=4, ctc_weight=0.3, maxlenratio=0.0)
    """

    kind: ClassVar[str] = ATTENTION
    needs_log_probs: ClassVar[bool] = True  # of CTC's share
    files: ClassVar[Mapping[str, str]] = {}
    beam: int = 10
    ctc_weight: float = 0.3
    maxlenratio: float = 0.0

    def __post_init__(self) -> None:
        if not is_whole(self.beam):
            raise UserError(f"search: beam is {self.beam!r}; give a whole number from 1 on")
        for key in ("ctc_weight", "maxlenratio"):
            if not is_number(getattr(self, key)):
                raise UserError(f"search: {key} is {getattr(self, key)!r}; give a number")
        if not 0 <= self.ctc_weight < 1:
            raise UserError(
                f"search: ctc_weight is {self.ctc_weight!r}; give a number from 0 to below 1, or search by CTC alone with kind: beam"
            )
        if -1 < self.maxlenratio < 0:
            raise UserError(f"search: maxlenratio is {self.maxlenratio!r}; give 0 or more, or a number of tokens as -50")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> AttentionConfig:
        """Reads the table that stands under ``search``.

        Raises:
            UserError: a key is unknown, or a value is wrong.
        """
        known = [field.name for field in fields(cls)]
        for key in mapping:
            if key not in ("kind", *known):
                raise UserError(f"search: unknown key {key!r} of kind {ATTENTION}; known keys are kind, {', '.join(known)}")
        return cls(**{key: value for key, value in mapping.items() if key != "kind" and value is not None})

    def to_mapping(self) -> dict[str, Any]:
        """What :func:`read_search` reads back."""
        return {"kind": ATTENTION, **asdict(self)}

    def beside(self, folder: Path) -> AttentionConfig:
        """Itself: it names no file."""
        return self

    def with_hotwords(self, hotwords: Any, boost: float = 0.0) -> AttentionConfig:
        """Raises UserError: only a beam over prefixes takes hotwords."""
        raise UserError(f"hotwords have no place in a search of kind {ATTENTION}; search with kind: beam")

    def __str__(self) -> str:
        """In a few words, for a page."""
        return f"attention and CTC (weight {self.ctc_weight:g}), beam {self.beam}"


Search = SearchConfig | AttentionConfig
"""How a text is looked for."""


def read_search(mapping: Any) -> Search:
    """Reads the table that stands under ``search``.

    Raises:
        UserError: a key is unknown or of no use to this kind of search, or a value is wrong.
    """
    if isinstance(mapping, Mapping) and mapping.get("kind") == ATTENTION:
        return AttentionConfig.from_mapping(mapping)
    return SearchConfig.from_mapping(mapping)
