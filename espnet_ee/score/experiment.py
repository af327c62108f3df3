"""Scores one experiment: reads its decodings and writes RESULTS.md, exits.csv, curve.png and report.html.

What the page depends on: of every set ``text`` and ``decode_every_exit/SET/{evidence.tsv,timing.tsv,decode.yaml}``; ``policies/*``;
of what ran online ``TAG/SET/{decode.yaml,utt2exit,utt2macs,1best_recog/text}``; ``exits.csv`` of the separate experiments; and
``train_time.yaml``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from espnet_ee.errors import UserError
from espnet_ee.files import read_yaml
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.attending import read_search
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.confidences import ConfidenceMap
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.score.calibrate import PROMISES
from espnet_ee.score.environment import git_hash
from espnet_ee.score.evaluate import Policies, SetResult, evaluate, make_policies
from espnet_ee.score.grid import Grid, read_grid
from espnet_ee.score.kept import read_failed
from espnet_ee.score.page import HEADER, PICTURE, Page, write_page
from espnet_ee.score.picture import make_figure, save_figure
from espnet_ee.score.points import Point, read_exits, write_exits
from espnet_ee.score.report import Report, audio_beside, write_report
from espnet_ee.score.runs import read_config, read_run
from espnet_ee.score.wer import invisible_characters

EVERY_EXIT = "decode_every_exit"
POLICIES = "policies"
REPORT = "report.html"


@dataclass(frozen=True)
class ScoreOptions:
    """What to score.

    Attributes:
        exp: the experiment's folder: ``decode_every_exit/SET``, ``policies/decode_NAME.yaml`` and, of what ran online,
            ``decode_NAME/SET``; the results are written into it.
        data_root: folder with a data directory (``text``) for each set.
        valid_set: the set the policies were calibrated on.
        test_sets: the sets to score, in the order of the page; the development set comes last.
        separate: scored experiments of separately trained depths: their ``exits.csv`` is read.
        command: the command line to report.
        notes: lines for the page.
        date: the date to report; without one none is written, so that a rerun gives the same bytes.
    """

    exp: Path
    data_root: Path
    valid_set: str
    test_sets: Sequence[str]
    separate: Sequence[Path] = ()
    command: str = ""
    notes: Sequence[str] = ()
    date: str = ""

    @property
    def sets(self) -> list[str]:
        """The sets of the page, each once."""
        return [*dict.fromkeys(name for name in self.test_sets if name != self.valid_set), self.valid_set]


def score_experiment(options: ScoreOptions) -> Page:
    """Scores the experiment and writes its files; an online run that differs from its replay is said on stderr.

    Raises:
        UserError: an input is missing or broken, or a set's utterances are not those of its references.
    """
    texts = {name: options.data_root / name / "text" for name in options.sets}
    decoded = options.exp / EVERY_EXIT
    grids = {name: read_grid(decoded / name / "evidence.tsv", texts[name], name, keep=True) for name in options.sets}
    configs, promises = _read_policies(options.exp / POLICIES)
    by_name = {name: config.policy_for(grids[options.valid_set].table.exit_layers) for name, config in configs.items()}
    runs = {name: list(_current_runs(options.exp, grid, by_name)) for name, grid in grids.items()}
    for name, grid in grids.items():
        if missed := {utt: reason for folder in runs[name] for utt, reason in read_failed(folder).items()}:
            grids[name] = grid.without(missed)
    confidences = next((config.confidences for config in configs.values() if config.confidences.knots), ConfidenceMap())
    policies = make_policies(grids[options.valid_set], by_name, promises, confidences)
    separate = _separate_points(options)
    results = [_evaluate(grids[name], policies, runs[name], texts[name], separate) for name in grids]
    page = Page(
        model=options.exp.resolve().name,
        environment=_environment(options, decoded / options.sets[0] / "decode.yaml"),
        sets=results,
        valid_set=options.valid_set,
        notes=[note for note in options.notes if note.strip()],
    )
    own = {_name_of(run): read_config(run) for folders in runs.values() for run in folders}
    audio = {name: audio_beside(text.parent, options.exp) for name, text in texts.items()}
    report = Report(page, grids, policies, {**own, **configs}, audio)
    # Only now, when everything was read and is whole, is anything written.
    points = [point for result in results for point in result.points]
    save_figure(options.exp / PICTURE, make_figure(points, [*options.sets[:-1]] or options.sets, page.model))
    write_exits(options.exp / "exits.csv", points)
    write_page(page_path(options.exp), page)
    write_report(options.exp / REPORT, report)
    _warn_of_differences(results)
    return page


def page_path(exp: Path) -> Path:
    """RESULTS.md, but where somebody else's stands, as that of ESPnet's stage 13: EXITS.md beside it, which is said."""
    usual = exp / "RESULTS.md"
    if not usual.is_file() or usual.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
        return usual
    print(f"{usual} is not of espnet-ee score and stays; the page is {exp / 'EXITS.md'}", file=sys.stderr)
    return exp / "EXITS.md"


def _evaluate(grid: Grid, policies: Policies, folders: Sequence[Path], text: Path, separate: Sequence[Point]) -> SetResult:
    references = read_scp(text, allow_empty=True)
    search = read_config(folders[0].parents[1] / EVERY_EXIT / grid.name).search if folders else None
    runs = [read_run(folder, _name_of(folder), grid, references, search) for folder in folders]
    others = [point for point in separate if point.set == grid.name]
    return evaluate(grid, policies, runs, others, invisible_characters(references.values()))


def _read_policies(folder: Path) -> tuple[dict[str, DecodingConfig], dict[str, Point]]:
    """The calibrated configurations in the order of their calibration, then those that somebody put beside them; the promises."""
    promises = {point.name: point for point in read_exits(folder / PROMISES)} if (folder / PROMISES).exists() else {}
    paths = {path.stem.removeprefix("decode_"): path for path in sorted(folder.glob("decode_*.yaml"))}
    names = sorted(paths, key=lambda name: list(promises).index(name) if name in promises else len(promises))
    return {name: DecodingConfig.read(paths[name]) for name in names}, promises


def _current_runs(exp: Path, grid: Grid, policies: Mapping[str, ExitPolicy]) -> Iterator[Path]:
    """The online decodings of the set, but those that an earlier model or calibration left behind; they are named on stderr."""
    evidence = read_yaml(exp / EVERY_EXIT / grid.name / "decode.yaml", "decode again")
    for path in sorted(exp.glob(f"*/{grid.name}/decode.yaml")):
        if path.parent.parent.name == EVERY_EXIT:
            continue
        same_model = read_yaml(path, "decode again").get("model_digest") == evidence.get("model_digest")
        policy = read_config(path.parent).policy_for(grid.table.exit_layers)
        if same_model and policies.get(_name_of(path.parent), policy) == policy:
            yield path.parent
        else:
            other = "policy than was calibrated" if same_model else "model than the evidence"
            print(f"warning: {path.parent}: left out, it is of another {other}; decode again or delete it", file=sys.stderr)


def _name_of(decoding: Path) -> str:
    """What the configuration of a decoding (TAG/SET) is called."""
    return decoding.parent.name.removeprefix("decode_")


def _separate_points(options: ScoreOptions) -> list[Point]:
    """The final exits of separately trained models, from their own ``exits.csv``."""
    points = []
    for folder in options.separate:
        fixed = [point for point in read_exits(folder / "exits.csv") if point.kind == "fixed"]
        last = {point.set: point for point in sorted(fixed, key=lambda point: point.depth)}
        missing = [name for name in options.sets if name not in last]
        if missing:
            raise UserError(f"{folder}/exits.csv: set {missing[0]} is not in it; score that experiment on the same sets first")
        points += [replace(last[name], kind="separate", name=f"separate: {folder.name}") for name in options.sets]
    return points


def _environment(options: ScoreOptions, decode_yaml: Path) -> dict[str, str]:
    """What stands in the environment block; versions and settings are those of the decoding, not of this command."""
    facts = read_yaml(decode_yaml, "decode every exit first")
    versions: Mapping[str, Any] = facts["versions"] if isinstance(facts.get("versions"), Mapping) else {}
    settings = ("train_config", "model_file", "parameters", "device", "batch_size", "num_threads")
    return {
        "date": options.date,
        **{f"{name} version": version for name, version in versions.items()},
        "git hash": git_hash(),
        "command": options.command,
        **{key.replace("_", " "): f"{facts[key]:,}" if key == "parameters" else facts[key] for key in settings if key in facts},
        "search": str(read_search(facts["search"])) if facts.get("search") else "",
        "training time": _training_time(options.exp / "train_time.yaml"),
    }


def _training_time(path: Path) -> str:
    """What stage 11 noted of the training's wall clock, or nothing when it noted none."""
    if not path.exists():
        return ""
    facts: dict[str, Any] = read_yaml(path, "train again")
    resumed = " since it was resumed" if facts.get("resumed") else ""
    machine = f"{facts['ngpu']} GPU" if facts.get("ngpu") else "CPU"
    minutes = float(facts.get("seconds", 0)) / 60
    return f"{minutes:.1f} minutes{resumed} on {facts.get('threads', 'default')} thread(s), {machine}"


def _warn_of_differences(results: Sequence[SetResult]) -> None:
    for result in results:
        for check in result.checks:
            if "**NO**" in check:
                print(f"warning: {result.name}: {check}".replace("**", ""), file=sys.stderr)
