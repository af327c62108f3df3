"""The picture of an experiment: word error rate over compute, readable without other text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_ee.errors import missing_packages_named
from espnet_ee.files import atomic_write
from espnet_ee.score.points import Point

MAX_PANELS = 2  # of more, none can be read on a page
# Okabe and Ito's palette, then Tol's; markers tell the policies apart without colour.
POLICIES = {
    "entropy": ("#0072B2", "s"),
    "confidence": ("#56B4E9", "^"),
    "patience": ("#E69F00", "v"),
    "posterior": ("#CC79A7", "P"),
    "learned": ("#D55E00", "D"),
    "cluster_entropy": ("#44AA99", "p"),
    "decoder": ("#117733", "<"),
    "decoder_posterior": ("#882255", ">"),
}
OTHER_POLICY = ("#999999", "h")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "fixed": (
        "fixed exits (number: the block)",
        {"color": "black", "marker": "o", "linestyle": "-", "markersize": 8, "linewidth": 2},
    ),
    "separate": (
        "separately trained models",
        {"color": "#8A2BE2", "marker": "X", "linestyle": ":", "markersize": 12, "linewidth": 2},
    ),
    "oracle": ("oracle (a bound)", {"color": "#009E73", "marker": "*", "linestyle": "none", "markersize": 22}),
}
"""Points that are no policy's: what the legend calls them, and how they are drawn."""


def save_figure(path: Path, figure: Any) -> None:
    """Writes matplotlib's figure as a PNG; the same figure gives the same bytes."""
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})


def make_figure(points: Sequence[Point], sets: Sequence[str], model: str) -> Any:
    """The picture as matplotlib's figure, of as many of the sets as it has room for; the title says where the others are.

    Raises:
        UserError: matplotlib is not installed.
    """
    key = "Lines: policies at all thresholds. Large marks: calibrated\non the development set, with 95 % intervals."
    title = f"{model}{not_shown(sets, 'RESULTS.md')}\nDown and left is better. {key}"
    return figure_of_sets(sets, lambda panel, name: _draw_panel(panel, [point for point in points if point.set == name]), title)


def not_shown(sets: Sequence[str], page: str) -> str:
    """Where the sets are that the picture has no room for; empty: it has."""
    return f" ({len(sets) - MAX_PANELS} more sets in {page})" if len(sets) > MAX_PANELS else ""


def figure_of_sets(sets: Sequence[str], draw: Callable[[Any, str], Mapping[str, Any]], title: str) -> Any:
    """A figure with a panel for each of the first sets.

    ``draw`` draws a set's panel (matplotlib's axes, the set's name) and returns the legend's entries by label.

    Raises:
        UserError: matplotlib is not installed.
    """
    with missing_packages_named():
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    shown = list(sets)[:MAX_PANELS]
    font = 11 + 4 * len(shown)  # a wider picture is shown smaller
    with matplotlib.rc_context(
        {  # names are no formulas: a $ is a $
            "font.size": font,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "text.parse_math": False,
        }
    ):
        # Not pyplot: it keeps every figure alive and may look for a display.
        figure = Figure(figsize=(1.0 + 8.5 * len(shown), 8.0), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        entries: dict[str, Any] = {}
        for panel, name in zip(panels, shown, strict=True):
            entries |= draw(panel, name)
            panel.set_title(name, loc="left", fontweight="bold")
        panels[0].set_ylabel("word error rate (%)")
        figure.suptitle(title, fontsize=font, x=0.01, ha="left")
        # Below the panels, where no curve can run into it.
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_panel(panel: Any, points: Sequence[Point]) -> dict[str, Any]:
    """Draws one set's points and returns the legend's entries."""
    fixed = [point for point in points if point.kind == "fixed"]
    unit = label_axes(panel, fixed, [point for point in points if point.kind != "sweep"])
    label, style = KINDS["fixed"]
    entries = {label: draw_exits(panel, fixed, unit, (6, 7), **style)}
    for policy in dict.fromkeys(point.policy for point in points if point.policy not in ("", "fixed")):
        entries[policy] = _draw_policy(panel, [point for point in points if point.policy == policy], unit, policy)
    for kind in ("separate", "oracle"):
        others, (label, style) = [point for point in points if point.kind == kind], KINDS[kind]
        if others:
            entries[label] = draw_line(panel, others, unit, **style)
    panel.set_xlim(left=0)
    return entries


def label_axes(panel: Any, costs: Sequence[Point], errors: Sequence[Point]) -> float:
    """Names the axis of compute, and makes room on the other one; gives the unit, MACs or more, that suits the costs of points."""
    unit, name = (1e9, "GMACs") if max(point.macs_per_second for point in costs) >= 1e9 else (1e6, "MMACs")
    panel.set_xlabel(f"compute ({name} per second of audio)")
    panel.set_ylim(0, 1.15 * max(point.wer for point in errors) or 1.0)
    panel.grid(alpha=0.25)
    return unit


def _draw_policy(panel: Any, points: Sequence[Point], unit: float, policy: str) -> Any:
    colour, marker = POLICIES.get(policy, OTHER_POLICY)
    style = {"color": colour, "marker": marker}
    sweep = [point for point in points if point.kind == "sweep"]
    line = draw_line(panel, sweep, unit, **style, linewidth=2, markersize=8, markevery=6, alpha=0.8)
    for point in points:
        if point.kind == "calibrated":
            bars = [[point.wer - point.wer_low], [point.wer_high - point.wer]]
            place = ([point.macs_per_second / unit], [point.wer])
            panel.errorbar(*place, yerr=bars, **style, markersize=13, markeredgecolor="white", elinewidth=1.5, capsize=4)
    return line


def draw_exits(panel: Any, fixed: Sequence[Point], unit: float, away: tuple[int, int], **style: Any) -> Any:
    """Draws fixed exits as a line, each with its number so many points away from it; gives matplotlib's line."""
    for point in fixed:
        place = (point.macs_per_second / unit, point.wer)
        panel.annotate(f"{point.depth:.0f}", place, textcoords="offset points", xytext=away, color=style["color"])
    return draw_line(panel, fixed, unit, **style)


def draw_line(panel: Any, points: Sequence[Point], unit: float, **style: Any) -> Any:
    """Draws points as one line of error rate over compute, in order of the compute; gives matplotlib's line."""
    places = sorted((point.macs_per_second / unit, point.wer) for point in points)
    (line,) = panel.plot([place[0] for place in places], [place[1] for place in places], **style)
    return line
