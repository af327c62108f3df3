"""The picture of all policies: WER over compute, depth and measured time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ee.files import atomic_write
from espnet_ee.score.curve import new_figure, plotting
from espnet_ee.score.grid import Outcome
from espnet_ee.score.study import SetStudy

# Okabe and Ito's palette; markers tell the policies apart without colour.
_STYLES: dict[str, tuple[str, str]] = {
    "entropy": ("#0072B2", "s"),
    "confidence": ("#56B4E9", "^"),
    "patience": ("#E69F00", "v"),
    "posterior": ("#CC79A7", "P"),
    "learned": ("#D55E00", "D"),
}
_ORACLE = "#009E73"
_FONT = 19


Axis = Callable[[Outcome], float]


def _axes(full: Outcome) -> dict[str, Axis]:
    unit, name = (1e9, "GMACs") if full.macs_per_second >= 1e9 else (1e6, "MMACs")
    axes: dict[str, Axis] = {
        f"compute ({name} per second of audio)": lambda found: found.macs_per_second / unit,
        "mean exit layer": lambda found: found.depth,
        "real-time factor (as measured)": lambda found: found.rtf,
    }
    # Without timing there is no third panel.
    return {label: axis for label, axis in axes.items() if not np.isnan(axis(full))}


def draw_study(path: Path, one: SetStudy) -> None:
    """Draws one set: lines are sweeps, filled marks with bars the calibrated points and their 95 % intervals.

    Raises:
        UserError: matplotlib is not installed.
    """
    axes = _axes(one.fixed[-1])
    with plotting(_FONT):
        figure = new_figure((9.5 * len(axes), 11.0))
        panels = figure.subplots(1, len(axes), squeeze=False, sharey=True)[0]
        handles: dict[str, Any] = {}
        for panel, (name, axis) in zip(panels, axes.items(), strict=True):
            handles |= _draw_panel(panel, one, axis)
            panel.set_xlabel(name)
            panel.grid(alpha=0.25)
        panels[0].set_ylabel("word error rate (%)")
        panels[0].set_ylim(bottom=0)
        title = f"Where to stop: {one.grid.name}, {len(one.grid.words)} utterances. Down and left is better."
        key = "Lines: all thresholds. Filled marks: calibrated on the development set, with 95 % intervals."
        figure.suptitle(f"{title}\n{key}", fontsize=_FONT, x=0.01, ha="left")
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
        with atomic_write(path, "wb") as stream:
            figure.savefig(stream, format="png", dpi=100)


def _draw_panel(panel: Any, one: SetStudy, axis: Axis) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    (line,) = panel.plot(*_line(one.fixed, axis), "o-", color="black", markersize=11, linewidth=2.5)
    handles["fixed exits"] = line
    full = one.fixed[-1]
    (mark,) = panel.plot([axis(full)], [full.wer], "o", color="black", markersize=20, fillstyle="none", markeredgewidth=2)
    handles["full model"] = mark
    for name, (colour, marker) in _STYLES.items():
        if name in one.curves:
            style = {"color": colour, "marker": marker, "linewidth": 2.5, "markersize": 8, "markevery": 6}
            (line,) = panel.plot(*_line(one.curves[name], axis), alpha=0.75, **style)
            handles[name] = line
            for point in (found for found in one.measured if found.calibrated.policy.name == name):
                around = [[point.found.wer - point.wer.low], [point.wer.high - point.found.wer]]
                bars = {"yerr": around, "ecolor": colour, "elinewidth": 1.5, "capsize": 4}
                panel.errorbar([axis(point.found)], [point.found.wer], fmt=marker, color=colour, markersize=15, **bars)
    for (name, found), marker in zip(one.oracles.items(), ("*", "X"), strict=True):
        (mark,) = panel.plot([axis(found)], [found.wer], marker, color=_ORACLE, markersize=20, linestyle="none")
        handles[name] = mark
    return handles


def _line(found: Sequence[Outcome], axis: Axis) -> tuple[list[float], list[float]]:
    places = sorted((axis(point), point.wer) for point in found)
    return [place[0] for place in places], [place[1] for place in places]
