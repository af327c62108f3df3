"""report.html: the page to choose from. The curve, each point's configuration, every utterance with the text of every exit.

One file without a server or a network: the results as JSON, and a script of ours that draws them (``report.js``). Texts get into the
page as text alone, never as HTML.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from espnet_ee.files import atomic_write
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.score.evaluate import Policies, SetResult
from espnet_ee.score.grid import Grid
from espnet_ee.score.page import Page, shown_points
from espnet_ee.score.picture import KINDS, OTHER_POLICY, POLICIES
from espnet_ee.score.points import Point

_PLAYED = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")  # by a browser


@dataclass(frozen=True)
class Report:
    """What report.html shows beside the page.

    Attributes:
        page: what RESULTS.md tells.
        grids: every set with its utterances.
        policies: the calibrated ones.
        configs: decoding configurations by name.
        audio: by set, of utterances whose audio lies beside, its address.
    """

    page: Page
    grids: Mapping[str, Grid]
    policies: Policies
    configs: Mapping[str, DecodingConfig]
    audio: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def base(self) -> DecodingConfig:
        """How all of them search, and what their word confidences are worth."""
        return next((config for name, config in self.configs.items() if name in self.policies.promises), DecodingConfig())


def write_report(path: Path, report: Report) -> None:
    """Writes the page atomically; the same results give the same bytes."""
    folder = Path(__file__).parent
    parts = {
        "TITLE": html.escape(report.page.model),
        "DATA": _harmless(_content(report)),
        "STYLE": (folder / "report.css").read_text(encoding="utf-8"),
        "SCRIPT": (folder / "report.js").read_text(encoding="utf-8"),
    }
    template = (folder / "report.html").read_text(encoding="utf-8")
    with atomic_write(path) as stream:
        # At once: what is filled in is not looked through for further places.
        stream.write(re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], template))


def _harmless(content: Any) -> str:
    """As JSON in which nothing ends the script it stands in, or begins another tag."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _content(report: Report) -> dict[str, Any]:
    layers = next(iter(report.grids.values())).layers.tolist()
    fixed = {f"exit {layer}": replace(report.base, policy=FixedExitPolicy(layer)) for layer in layers}
    promises = {name: _promised(point) for name, point in report.policies.promises.items()}
    return {
        "valid": report.page.valid_set,
        "styles": _styles(),
        "configs": {name: config.to_yaml() for name, config in {**fixed, **report.configs}.items()},
        "sweeps": {policy.name: _template(report, policy) for policy, _ in report.policies.sweeps},
        "sets": [_set(report, result, promises) for result in report.page.sets],
    }


def _styles() -> dict[str, dict[str, str]]:
    """Colours and markers of the picture."""
    styles = {name: {"colour": colour, "marker": marker} for name, (colour, marker) in POLICIES.items()}
    for name, (label, style) in KINDS.items():
        styles[name] = {"colour": style["color"], "marker": style["marker"], "label": label}
    return {**styles, "other": {"colour": OTHER_POLICY[0], "marker": OTHER_POLICY[1]}}


def _template(report: Report, policy: Any) -> str:
    """The decoding configuration of a policy with THRESHOLD in its threshold's place."""
    number = 0.123456789
    text = replace(report.base, policy=replace(policy, threshold=number)).to_yaml()
    return text.replace(f"threshold: {number}", "threshold: THRESHOLD", 1)


def _promised(point: Point) -> str:
    bound = "" if math.isnan(point.loss_bound) else f", at most {point.loss_bound:+.1f} % on new utterances"
    loss = "" if math.isnan(point.loss) else f", {point.loss:+.1f} % against the last exit{bound}"
    return f"{point.wer:.2f} % WER{loss}"


def _set(report: Report, result: SetResult, promises: Mapping[str, str]) -> dict[str, Any]:
    grid, audio = report.grids[result.name], report.audio.get(result.name, {})
    sweeps = [point for point in result.points if point.kind == "sweep"]
    others = shown_points(result)
    full = [point.macs_per_second for point in others if point.kind == "fixed"][-1]
    stops = [*result.sweep_stops, *(_stops(result, point, number) for number, point in enumerate(others))]
    return {
        "name": result.name,
        "layers": grid.layers.tolist(),
        "points": [
            {**_point(point, full), "stops": own, "promise": promises.get(point.name)}
            for point, own in zip([*sweeps, *others], stops, strict=True)
        ],
        "exits": {name: exits.tolist() for name, exits in result.exits.items()},
        "boldest": result.hurt_by or f"exit {grid.layers[-1]}",
        "utterances": [_utterance(grid, row, audio) for row in range(len(grid.utterances))],
    }


def _stops(result: SetResult, point: Point, number: int) -> list[int] | None:
    """How many utterances stop at every exit; the fixed exits come first, in their order."""
    if point.kind == "fixed":
        layers = [other for other in result.points if other.kind == "fixed"]
        return [result.utterances * (place == number) for place in range(len(layers))]
    return list(result.stops[point.name]) if point.name in result.stops else None


def _point(point: Point, full: float) -> dict[str, Any]:
    over = (point.over_fixed, point.over_fixed_low, point.over_fixed_high)
    return {
        "kind": point.kind,
        "name": point.name,
        "policy": point.policy,
        "threshold": _known(point.threshold),
        "target": point.target,
        "reached": point.reached,
        "wer": round(point.wer, 4),
        "low": round(point.wer_low, 4),
        "high": round(point.wer_high, 4),
        "cer": round(point.cer, 4),
        "depth": round(point.depth, 4),
        "macs": round(point.macs_per_second, 1),
        "share": round(100 * point.macs_per_second / full, 2) if full else 100.0,
        "rtf": _known(point.rtf),
        "over": None if math.isnan(point.over_fixed) else [round(value, 4) for value in over],
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _utterance(grid: Grid, row: int, audio: Mapping[str, str]) -> dict[str, Any]:
    name = grid.utterances[row]
    said = [exit_.hypothesis for exit_ in grid.table.utterances[name].rows]
    texts = list(dict.fromkeys(said))
    return {
        "id": name,
        "seconds": round(float(grid.seconds[row]), 2),
        "reference": grid.references.get(name, ""),
        "texts": texts,
        "at": [texts.index(text) for text in said],
        "errors": grid.errors[row].astype(int).tolist(),
        **({"audio": audio[name]} if name in audio else {}),
    }


def audio_beside(data: Path, folder: Path) -> dict[str, str]:
    """Where a browser finds the audio of a data directory, seen from the page's folder; of what lies inside a recording also its times."""
    if not (data / "wav.scp").is_file():
        return {}
    paths = {name: Path(value) for name, value in read_scp(data / "wav.scp").items() if value.lower().endswith(_PLAYED)}
    urls = {name: _address(path, folder) for name, path in paths.items() if path.is_file()}
    if not (data / "segments").is_file():
        return urls
    cuts = {name: line.split() for name, line in read_scp(data / "segments").items()}
    return {name: f"{urls[cut[0]]}#t={cut[1]},{cut[2]}" for name, cut in cuts.items() if len(cut) == 3 and cut[0] in urls}


def _address(path: Path, folder: Path) -> str:
    return quote(os.path.relpath(os.path.abspath(path), os.path.abspath(folder)))
