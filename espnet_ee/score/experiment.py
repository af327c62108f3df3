"""Scores one experiment: reads its decodings, replays, writes RESULTS.md, exits.csv, curve.png and the sets' files."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import espnet_ee
from espnet_ee.errors import UserError
from espnet_ee.files import read_yaml
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.table import read_table
from espnet_ee.score.curve import draw_curve, read_exits, write_exits
from espnet_ee.score.replay import (
    OperatingPoint,
    ScoredSet,
    entropy_sweep,
    entropy_thresholds,
    fixed_points,
    oracle_points,
)
from espnet_ee.score.report import Report, describe_check, write_report
from espnet_ee.score.runs import OnlineRun, load_online_run, load_scored_set, write_errors
from espnet_ee.score.training import read_epochs, training_table


@dataclass(frozen=True)
class ScoreOptions:
    """What to score.

    Attributes:
        exp_dir: the experiment's folder; the results are written into it.
        data_root: folder with a data directory (``text``) for each set.
        valid_set: the set the sweep's thresholds are taken from, and no other.
        test_sets: the sets to score, in the order of the report.
        all_exits_tag: folder in ``exp_dir`` of the decoding that kept all exits.
        policies: folders in ``exp_dir`` of the online decodings.
        separate_exps: scored experiments of separately trained depths, drawn as a reference.
        command: the command line to report.
        notes: lines for the report.
        date: the date to report; without one none is written, so that a rerun gives the same bytes.
    """

    exp_dir: Path
    data_root: Path
    valid_set: str
    test_sets: Sequence[str]
    all_exits_tag: str = "decode_all_exits"
    policies: Sequence[str] = ()
    separate_exps: Sequence[Path] = ()
    command: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    date: str = ""


def score_experiment(options: ScoreOptions) -> Report:
    """Scores the experiment and writes its files; an online run that differs from its replay is said on stderr.

    Raises:
        UserError: an input is missing or broken, or a set's utterances are not those of its references.
    """
    decoded = options.exp_dir / options.all_exits_tag
    thresholds = entropy_thresholds(read_table(decoded / options.valid_set / "evidence.tsv"))
    separate = _separate_points(options)
    points: list[OperatingPoint] = []
    online: dict[str, list[OnlineRun]] = {}
    aligned: dict[str, ScoredSet] = {}
    for name in options.test_sets:
        references = read_scp(options.data_root / name / "text", allow_empty=True)
        scored = aligned[name] = load_scored_set(decoded / name, name, references)
        online[name] = [load_online_run(options.exp_dir / tag / name, tag, scored, references) for tag in options.policies]
        points += [*fixed_points(scored), *entropy_sweep(scored, thresholds), *oracle_points(scored)]
        points += [run.point for run in online[name]]
        points += [point for point in separate if point.set == name]
    report = Report(
        model=options.exp_dir.resolve().name,
        environment=_environment(options, decoded / options.test_sets[0] / "decode.yaml"),
        sets=options.test_sets,
        points=points,
        online=online,
        valid_set=options.valid_set,
        curve="curve.png",
        notes=options.notes,
        training=training_table(read_epochs(options.exp_dir)),
    )
    # Only now, when everything was read and found whole, is anything written.
    for name, scored in aligned.items():
        write_errors(decoded / name / "utt2errors.tsv", scored)
    write_exits(options.exp_dir / "exits.csv", points)
    draw_curve(options.exp_dir / report.curve, points, options.test_sets, report.model)
    write_report(options.exp_dir / "RESULTS.md", report)
    _warn_of_differences(report)
    return report


def _separate_points(options: ScoreOptions) -> list[OperatingPoint]:
    """Returns the final exits of separately trained models, from their own ``exits.csv``."""
    points = []
    for folder in options.separate_exps:
        fixed = [point for point in read_exits(folder / "exits.csv") if point.kind == "fixed"]
        last = {point.set: point for point in sorted(fixed, key=lambda point: point.depth)}
        missing = [name for name in options.test_sets if name not in last]
        if missing:
            raise UserError(f"{folder}/exits.csv: set {missing[0]} is not in it; score that experiment on the same sets first")
        points += [replace(last[name], kind="separate", name=f"separate: {folder.name}") for name in options.test_sets]
    return points


def _environment(options: ScoreOptions, decode_yaml: Path) -> dict[str, str]:
    """Returns the environment block; versions are those of the decoding, not of this command."""
    conf = read_yaml(decode_yaml, "run stage 12")
    versions = conf.get("versions") if isinstance(conf.get("versions"), Mapping) else {}
    lines = {
        "date": options.date,
        "python version": str(versions.get("python", platform.python_version())),
        "espnet_ee version": str(versions.get("espnet_ee", espnet_ee.__version__)),
        "espnet version": str(versions.get("espnet", "")),
        "pytorch version": str(versions.get("torch", "")),
        "git hash": _git_hash(Path(espnet_ee.__file__).parent),
        "command": options.command,
        "training config": str(conf.get("train_config", "")),
        "model file": str(conf.get("model_file", "")),
        "parameters": f"{conf['parameters']:,}" if isinstance(conf.get("parameters"), int) else "",
        "decoding": ", ".join(f"{key} {conf[key]}" for key in ("device", "batch_size", "num_threads") if key in conf),
    }
    lines["training time"] = _training_time(options.exp_dir / "train_time.yaml")
    # A backquote or a line break inside would end the code span.
    return {name: " ".join(value.replace("`", "'").split()) for name, value in lines.items() if value}


def _training_time(path: Path) -> str:
    """Returns what stage 11 noted of the training's wall clock, or nothing when it noted none."""
    if not path.exists():
        return ""
    facts = read_yaml(path, "run stage 11")
    resumed = " since it was resumed" if facts.get("resumed") else ""
    machine = f"{facts['ngpu']} GPU" if facts.get("ngpu") else "CPU"
    return (
        f"{float(facts.get('seconds', 0)) / 60:.1f} minutes{resumed} on {facts.get('threads', 'default')} thread(s), {machine}"
    )


def _git_hash(package: Path) -> str:
    """Returns the commit of the package's own repository, or nothing when it has none or git is missing."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # An environment inside some other repository would report that repository's commit.
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "HEAD") + (" (with local changes)" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _warn_of_differences(report: Report) -> None:
    for name, runs in report.online.items():
        for run in runs:
            if not run.equals_replay:
                print(f"warning: {run.point.name}/{name}: {describe_check(run)}".replace("**", ""), file=sys.stderr)
