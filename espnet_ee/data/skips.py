"""Utterances that a broken corpus loses: each with its reason, counted, and never more than was allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import atomic_write

SKIP_LIST = "skipped"
"""The file in a data directory that lists them: ``ID REASON`` a line."""


@dataclass(frozen=True)
class Skip:
    """An utterance that cannot be used, and why (the reason names file and line)."""

    utt_id: str
    reason: str


def check_limit(percent: float) -> None:
    """Raises UsageError unless it is a percentage."""
    if not 0 <= percent <= 100:
        raise UsageError(f"--max_skipped {percent}: not a percentage; give one from 0 to 100")


def settle(skips: Sequence[Skip], total: int, max_percent: float, what: str, folder: Path) -> None:
    """Lets a few broken utterances go, and no more; those that go are listed in a data directory in the making.

    Args:
        skips: the broken ones.
        total: how many utterances there are, with them.
        max_percent: how many of them may go; 0 for a set that is scored.
        what: what the error calls the set.
        folder: where the list goes.

    Raises:
        UserError: there are too many, or none would be left; names the first and says how to go on.
    """
    if not skips:
        return
    first = skips[0].reason
    if max_percent == 0:
        others = f" ({len(skips)} of {total} utterances are broken)" if len(skips) > 1 else ""
        raise UserError(f"{first}{others}")
    if 100 * len(skips) > max_percent * total or len(skips) == total:
        raise UserError(
            f"{what}: {len(skips)} of {total} utterances are broken, more than {max_percent:g} %; the first: {first}; "
            "mend the corpus or allow more with --max_skipped PERCENT"
        )
    with atomic_write(folder / SKIP_LIST) as stream:
        stream.writelines(f"{skip.utt_id} {' '.join(skip.reason.split())}\n" for skip in sorted(skips, key=str))


@dataclass(frozen=True)
class Prepared:
    """What became of a set: how many utterances its data directory has, which ones are not in it, how many there are in the
    published corpus, if that is known, and how many invisible signs were removed from its texts."""

    utterances: int
    skips: tuple[Skip, ...] = ()
    distributed: int | None = None
    invisible: int = 0

    def describe(self, folder: Path) -> str:
        """``DIR: 123 utterances``; if some went, how many, and where it says why; and whether some never were there."""
        note = f", {len(self.skips)} skipped (reasons: {folder / SKIP_LIST})" if self.skips else ""
        if self.distributed not in (None, self.utterances + len(self.skips)):
            note += f"; warning: the published set has {self.distributed}, so results compare with nothing published"
        if self.invisible:
            note += f"; warning: {self.invisible} invisible signs removed from its texts"
        return f"{folder}: {self.utterances} utterances{note}"
