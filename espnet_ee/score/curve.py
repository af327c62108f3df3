"""The WER-versus-compute curve: ``exits.csv`` and its picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write
from espnet_ee.score.replay import OperatingPoint
from espnet_ee.score.wer import ErrorCounts

_COUNTS = tuple(field.name for field in fields(ErrorCounts))
_HEAD = ("set", "kind", "name", "threshold", "wer", "cer", "depth", "macs_per_second", "rtf", "rtf_replayed")
COLUMNS = (*_HEAD, *(f"word_{name}" for name in _COUNTS), *(f"character_{name}" for name in _COUNTS))

MAX_PANELS = 3
# Inches and font size by the number of panels: a wider picture is shown smaller, so its letters are larger.
_FIGURES = {1: ((12.0, 7.5), 14), 2: ((15.0, 7.5), 16), 3: ((19.0, 9.5), 19)}
# Okabe and Ito's palette: told apart by colour-blind readers, and by lightness in print.
_BLACK, _BLUE, _ORANGE, _GREEN, _PURPLE = "#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7"
_STYLES: dict[str, dict[str, Any]] = {
    "fixed": {"color": _BLACK, "marker": "o", "linestyle": "-", "label": "fixed: every utterance at one exit"},
    "sweep": {"color": _BLUE, "marker": ".", "linestyle": "--", "label": "entropy policy, thresholds from the dev set"},
    "online": {"color": _ORANGE, "marker": "D", "linestyle": "none", "label": "policy as run online"},
    "oracle": {"color": _GREEN, "marker": "*", "linestyle": "none", "label": "oracle: exit chosen by the reference"},
    "separate": {"color": _PURPLE, "marker": "s", "linestyle": ":", "label": "separately trained models"},
}
_SIZES = {"oracle": 17, "online": 10, "sweep": 9}
# Where the number of a point stands, so that neighbours' numbers keep apart: offset in points and alignment.
_LABELS: dict[str, dict[str, Any]] = {
    "fixed": {"xytext": (5, 6), "ha": "left", "va": "bottom", "color": _BLACK},
    # Up and right of a falling curve there is room; a line leads back to the point.
    "online": {
        "xytext": (26, 34),
        "ha": "left",
        "va": "bottom",
        "color": "#8A5F00",
        "arrowprops": {"arrowstyle": "-", "color": "#8A5F00"},
    },
    "oracle": {"xytext": (0, -10), "ha": "center", "va": "top", "color": "#00664A"},
    "oracle, cheapest": {"xytext": (-10, 0), "ha": "right", "va": "center", "color": "#00664A"},
    "separate": {"xytext": (-9, 0), "ha": "right", "va": "center", "color": "#9C3F72"},
}
_ORDER = ("separate", "fixed", "sweep", "online", "oracle")


def write_exits(path: str | Path, points: Sequence[OperatingPoint]) -> None:
    """Writes ``exits.csv``: one row for each operating point, rates in per cent, counts as they are."""
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_row(point) for point in points)


def _row(point: OperatingPoint) -> list[Any]:
    head = (point.set, point.kind, point.name, point.threshold, point.wer, point.characters.rate, point.depth)
    tail = (point.macs_per_second, point.rtf, point.rtf_replayed)
    counts = [getattr(unit, name) for unit in (point.words, point.characters) for name in _COUNTS]
    return ["" if value is None else value for value in (*head, *tail, *counts)]


def read_exits(path: str | Path) -> list[OperatingPoint]:
    """Reads ``exits.csv``.

    Raises:
        UserError: the file is missing or not an ``exits.csv`` of this version.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the scoring stage first") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; run the scoring stage again") from None
    points = []
    for number, row in enumerate(rows, 2):
        try:
            points.append(_point(row))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a row of exits.csv ({error}); run the scoring stage again") from None
    return points


def _point(row: dict[str, str]) -> OperatingPoint:
    words, characters = (ErrorCounts(*(int(row[f"{unit}_{name}"]) for name in _COUNTS)) for unit in ("word", "character"))
    return OperatingPoint(
        set=row["set"],
        kind=row["kind"],
        name=row["name"],
        threshold=float(row["threshold"]) if row["threshold"] else None,
        words=words,
        characters=characters,
        depth=float(row["depth"]),
        macs_per_second=float(row["macs_per_second"]),
        rtf=float(row["rtf"]) if row["rtf"] else None,
        rtf_replayed=row["rtf_replayed"] == "True",
    )


def draw_curve(path: str | Path, points: Sequence[OperatingPoint], sets: Sequence[str], model: str) -> None:
    """Draws WER over compute as a PNG that needs no other text: one panel for each set, three at most.

    Args:
        path: the PNG.
        points: operating points, of these and perhaps other sets.
        sets: the sets to draw, in order; those after the third are left out, and the title says so.
        model: name of the model, for the title.

    Raises:
        UserError: matplotlib is not installed.
    """
    if not sets:
        raise ValueError("no set to draw")
    drawn = list(sets)[:MAX_PANELS]
    points = [point for point in points if point.set in drawn]
    size, font = _FIGURES[len(drawn)]
    with plotting(font):
        figure = new_figure(size)
        panels = figure.subplots(1, len(drawn), squeeze=False)[0]
        giga = max((point.macs_per_second for point in points), default=0.0) >= 1e9
        handles: dict[str, Any] = {}
        for panel, name in zip(panels, drawn, strict=True):
            handles |= _draw_panel(panel, [point for point in points if point.set == name], giga)
            panel.set_title(name, loc="left", fontweight="bold")
        panels[0].set_ylabel("word error rate (%)")
        more = f" ({len(sets) - len(drawn)} more sets not shown)" if len(sets) > len(drawn) else ""
        title = f"Word error rate versus compute: {model}{more}"
        key = "Number at a point: mean exit layer, the block after which utterances stop. Down and left is better."
        figure.suptitle(f"{title}\n{key}", fontsize=font, x=0.01, ha="left")
        # Below the panels, where no curve can run into it.
        columns = 3 if len(drawn) == 3 else 2
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
        with atomic_write(path, "wb") as stream:
            figure.savefig(stream, format="png", dpi=150)


def plotting(font: int) -> AbstractContextManager:
    """The project's look, for the block's pictures.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("the curve needs matplotlib; install it with: pip install 'espnet_ee[recipe]'") from None
    style = {"font.size": font, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": font}
    return matplotlib.rc_context(style)


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it keeps every figure alive and may look for a display.
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_panel(panel: Any, points: Sequence[OperatingPoint], giga: bool) -> dict[str, Any]:
    """Draws one set's points and returns the legend's entries."""
    unit, unit_name = (1e9, "GMACs") if giga else (1e6, "MMACs")
    handles = {}
    for kind in _ORDER:
        chosen = sorted((point for point in points if point.kind == kind), key=lambda point: point.macs_per_second)
        places = [(point.macs_per_second / unit, point.wer) for point in chosen]
        if chosen:
            style = _STYLES[kind]
            (line,) = panel.plot(*zip(*places, strict=True), markersize=_SIZES.get(kind, 8), linewidth=2, **style)
            handles[style["label"]] = line
        for number, (point, place) in enumerate(zip(chosen, places, strict=True)):
            if kind in _LABELS:
                label = _LABELS["oracle, cheapest" if kind == "oracle" and number == 0 else kind]
                text = f"{point.depth:.0f}" if kind in ("fixed", "separate") else f"{point.depth:.1f}"
                panel.annotate(text, place, textcoords="offset points", **label)
    panel.set_xlabel(f"compute ({unit_name} per second of audio)")
    panel.set_xlim(0, 1.07 * max((point.macs_per_second for point in points), default=unit) / unit)
    panel.set_ylim(0, 1.08 * max([point.wer for point in points if point.wer < float("inf")], default=1.0) or 1.0)
    panel.grid(alpha=0.25)
    return handles
