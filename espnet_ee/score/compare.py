"""Two evidence tables of the same set, exit by exit: what changed, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from espnet_ee.errors import UserError
from espnet_ee.score.bootstrap import Difference, difference, draws
from espnet_ee.score.grid import Grid, Outcome, fixed_outcomes
from espnet_ee.score.report import markdown
from espnet_ee.score.wer import check_same_utterances

COLUMNS = ("exit", "WER % of {0}", "WER % of {1}", "difference", "MMACs/s of {0}", "MMACs/s of {1}")


@dataclass(frozen=True)
class ExitComparison:
    """One exit in both tables.

    Attributes:
        layer: the exit's block, 1-based.
        one: every utterance at this exit, by the first table.
        other: by the second table.
        difference: WER(other) - WER(one), with its interval by paired bootstrap over utterances.
    """

    layer: int
    one: Outcome
    other: Outcome
    difference: Difference


def compare_exits(one: Grid, other: Grid, other_passes_heads: bool = False) -> list[ExitComparison]:
    """Compares the exits that both tables have.

    Args:
        one: every exit pays for its own head only.
        other: the other decoding of the same set.
        other_passes_heads: whether its exits pay for the heads below, too (as combined exits do).

    Raises:
        UserError: the tables hold other utterances, other references, or no exit in common.
    """
    check_same_utterances(one.utterances, other.utterances, f"set {other.name}")
    if (one.words != other.words).any():
        raise UserError(f"set {other.name}: its references have other lengths; score both tables against the same text")
    firsts = dict(zip(one.layers.tolist(), fixed_outcomes(one), strict=True))
    others = dict(zip(other.layers.tolist(), fixed_outcomes(other, other_passes_heads), strict=True))
    common = [layer for layer in firsts if layer in others]
    if not common:
        raise UserError(f"exits {list(firsts)} and {list(others)}: none in common, nothing can be compared")
    drawn = draws(len(one.utterances))
    return [
        ExitComparison(layer, firsts[layer], others[layer], difference(drawn, others[layer], firsts[layer])) for layer in common
    ]


def comparison_table(found: Sequence[ExitComparison], names: tuple[str, str]) -> list[str]:
    """Lines of a Markdown table; the difference is the second WER minus the first, below 0 is better."""
    header = [column.format(*names) for column in COLUMNS]
    return markdown(header, list(_rows(found)))


def _rows(found: Sequence[ExitComparison]) -> Iterator[list[str]]:
    for at in found:
        costs = [f"{outcome.macs_per_second / 1e6:.4g}" for outcome in (at.one, at.other)]
        yield [f"{at.layer}", f"{at.one.wer:.2f}", f"{at.other.wer:.2f}", f"{at.difference}", *costs]
