"""The picture of several models: every one's exits and calibrated policies, word error rate over compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from espnet_ee.score.picture import OTHER_POLICY, POLICIES, draw_exits, figure_of_sets, label_axes, not_shown

if TYPE_CHECKING:
    from espnet_ee.score.models import Model

# Okabe and Ito's palette without its yellow, which is too light for a line, and a grey; of more than eight models they come again.
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
_MUCH = 20  # times as much compute: beyond that the scale is logarithmic
# Hollow, so that what lies below is seen.
_MARK: dict[str, Any] = {"linestyle": "none", "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.8}


def make_models_figure(models: Sequence[Model], sets: Sequence[str], title: str) -> Any:
    """The picture as matplotlib's figure, of as many of the sets as it has room for; the title says where the others are.

    Raises:
        UserError: matplotlib is not installed.
    """
    colours = {model.name: _COLOURS[number % len(_COLOURS)] for number, model in enumerate(models)}
    key = "Filled marks with numbers: exits\n(dotted: a model for each). Hollow marks: policies calibrated on the development set."
    text = f"{title}{not_shown(sets, 'COMPARISON.md')}\nDown and left is better. {key}"
    return figure_of_sets(sets, lambda panel, name: _draw_panel(panel, models, name, colours), text)


def _draw_panel(panel: Any, models: Sequence[Model], name: str, colours: Mapping[str, str]) -> dict[str, Any]:
    """Draws one set and returns the legend's entries."""
    shown = [model for model in models if model.fixed(name)]
    points = [point for model in shown for point in (*model.fixed(name).values(), *model.policies(name).values())]
    costs = [point.macs_per_second for point in points]
    unit = label_axes(panel, points, points)
    entries: dict[str, Any] = {}
    marks: dict[str, Any] = {}
    for number, model in enumerate(shown):
        style: dict[str, Any] = {"marker": "X", "linestyle": ":"} if model.is_separate else {"marker": "o", "linestyle": "-"}
        style |= {"color": colours[model.name], "linewidth": 2, "markersize": 8}
        away = (6, 7) if number % 2 == 0 else (-6, -20)  # above one line and below the next
        entries[model.name] = draw_exits(panel, list(model.fixed(name).values()), unit, away, **style)
        for point in model.policies(name).values():
            marker = POLICIES.get(point.policy, OTHER_POLICY)[1]
            panel.plot([point.macs_per_second / unit], [point.wer], marker=marker, markeredgecolor=colours[model.name], **_MARK)
            if point.policy not in marks:
                # The legend's mark has no model's colour.
                (marks[point.policy],) = panel.plot([], [], marker=marker, markeredgecolor="#777777", **_MARK)
    if max(costs) > _MUCH * min(costs) > 0:
        panel.set_xscale("log", subs=[])
        panel.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
        panel.xaxis.set_major_formatter("{x:g}")
    else:
        panel.set_xlim(left=0)
    return entries | marks
