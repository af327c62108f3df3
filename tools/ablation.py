#!/usr/bin/env python3
"""Trains the rows of a table of experiments by their recipe, and sets their exits side by side.

    python tools/ablation.py egs/an4/asr1/local/ablation.yaml [--jobs 2] [--seconds 3600] [--rows NAME ...] [-- --an4_root DIR ...]

What follows ``--`` goes to the recipe's run.sh, for every row. The data stages and the statistics run once; then each row is one
experiment, exp/asr_ROW: trained, decoded and scored. A row that is done is not done again, one that was cut off goes on.
The table ABLATION.md, beside RESULTS.md in the recipe's folder, is made of those rows that have been scored; --table makes it and trains nothing.
The file of rows, in the order in which they are trained:

    note: what the page says above the table
    options: [--train_set, train_clean_5]     # of run.sh, for every row
    expdir: exp_5h                            # where the experiments lie; without it: exp
    rows:
      fast: {asr_config: conf/train_ee_fast_conformer.yaml}
      fast_crctc: {asr_config: conf/train_ee_fast_conformer.yaml, asr_args: '--model_conf exit_terms={"ctc":1.0,"cr_ctc":0.2}'}
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_ee.errors import UsageError, UserError, run
from espnet_ee.files import atomic_write, read_yaml
from espnet_ee.score.points import Point, read_exits

OPTIONS = {"asr_config", "asr_args", "asr_stats_dir", "seed", "token_type", "nbpe", "bpemode"}
PREPARED = ("token_type", "nbpe", "bpemode", "asr_stats_dir")  # what stages 1 to 10 make, or where


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows_file", type=Path, help="the file of rows, in the local folder of a recipe")
    parser.add_argument("--rows", nargs="+", default=[], help="only these rows")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="what is not done by then is cut off")
    parser.add_argument("--table", action="store_true", help="only make the table")
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:place])
    arguments.options = words[place + 1 :]
    return arguments


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        recipe: its folder.
        rows: the experiments' settings, by name.
        options: of run.sh, for all of them.
        expdir: where the experiments lie.
        note: for the page.
    """

    recipe: Path
    rows: Mapping[str, Mapping[str, Any]]
    options: Sequence[str]
    expdir: Path
    note: str

    def command(self, row: Mapping[str, Any], *stages: str) -> list[str]:
        """A call of the recipe."""
        settings = [word for key, value in row.items() for word in (f"--{key}", str(value))]
        return [str(self.recipe / "run.sh"), "--expdir", str(self.expdir), *self.options, *settings, *stages]


def read_plan(path: Path, wanted: Sequence[str], options: Sequence[str]) -> Plan:
    """The file of rows; all of them, or those that are wanted."""
    facts = read_yaml(path, "give a file of rows")
    rows, own = facts.get("rows"), facts.get("options", [])
    if not isinstance(rows, Mapping) or not all(isinstance(row, Mapping) and set(row) <= OPTIONS for row in rows.values()):
        raise UserError(f"{path}: rows: give a table of experiments, each with some of {', '.join(sorted(OPTIONS))}")
    unknown = [name for name in wanted if name not in rows]
    if unknown:
        raise UsageError(f"--rows: {unknown[0]}: {path} has {', '.join(rows)}")
    kept = {name: dict(row) for name, row in rows.items() if not wanted or name in wanted}
    recipe = path.resolve().parent.parent
    words = [*map(str, own), *options]
    return Plan(recipe, kept, words, recipe / str(facts.get("expdir", "exp")), str(facts.get("note", "")).strip())


def prepare(plan: Plan) -> None:
    """Stages 1 to 10, once for every kind of tokens and every folder of statistics (rows of another frontend have their own)."""
    done = set()
    for row in plan.rows.values():
        kind = tuple(row.get(key) for key in PREPARED)
        if kind in done:
            continue
        done.add(kind)
        if subprocess.run(plan.command(row, "--stop_stage", "10"), stdin=subprocess.DEVNULL, check=False).returncode:
            raise UserError(f"{plan.recipe}/run.sh failed in the stages up to 10; what it says stands above")


def start(plan: Plan, name: str) -> subprocess.Popen[bytes]:
    """Stages 11 to 13 of one row, in a process group of its own; what it prints goes to the log folder."""
    log = plan.expdir / "log" / f"ablation_{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = plan.command(plan.rows[name], "--asr_tag", name, "--stage", "11", "--stop_stage", "13")
    with log.open("ab") as out:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)


def train(plan: Plan, jobs: int, until: float) -> list[str]:
    """Trains the rows, so many at once; gives those that failed or were cut off."""
    waiting, running, failed = list(plan.rows), dict[str, subprocess.Popen[bytes]](), []
    try:
        while waiting or running:
            late = time.monotonic() > until
            while waiting and len(running) < jobs and not late:
                name = waiting.pop(0)
                running[name] = start(plan, name)
                print(f"{time.strftime('%T')} {name}: begun", flush=True)
            if late:
                failed += [*running, *waiting]
                return failed
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    failed += [name] if process.returncode else []
                    print(f"{time.strftime('%T')} {name}: {'failed' if process.returncode else 'done'}", flush=True)
            time.sleep(0.5)
    finally:
        for process in running.values():
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    return failed


def line(name: str, points: Sequence[Point], parameters: str) -> str:
    """One row of the table: every exit's error rate and compute."""
    cells = [f"{p.wer:.2f} [{p.wer_low:.2f}, {p.wer_high:.2f}] / {p.macs_per_second / 1e6:.1f}" for p in points]
    return f"|{name}|{parameters}|{'|'.join(cells)}|"


def environment(page: Path) -> dict[str, str]:
    """The block of facts at the end of an experiment's RESULTS.md."""
    facts = page.read_text(encoding="utf-8").partition("## Environments")[2].splitlines()
    pairs = [fact.removeprefix("- ").partition(": ") for fact in facts if fact.startswith("- ")]
    return {name: value.strip("`") for name, _, value in pairs}


def epochs(exp: Path) -> str:
    """How many epochs a training has finished, of how many."""
    log = exp / "train.log"
    done = re.findall(r"(\d+)epoch results:", log.read_text("utf-8", errors="replace")) if log.exists() else []
    return f"{max(map(int, done), default=0)} of {read_yaml(exp / 'config.yaml', 'train again').get('max_epoch')}"


def write_table(plan: Plan, words: Sequence[str]) -> Path:
    """ABLATION.md of the rows that have been scored."""
    lines, facts = [], dict[str, dict[str, str]]()
    sets: dict[str, list[str]] = {}
    for name in plan.rows:
        exp = plan.expdir / f"asr_{name}"
        if not (exp / "exits.csv").exists():
            continue
        facts[name] = environment(exp / "RESULTS.md")
        fixed = [point for point in read_exits(exp / "exits.csv") if point.kind == "fixed"]
        for set_name in dict.fromkeys(point.set for point in fixed):
            points = [point for point in fixed if point.set == set_name]
            own = sets.setdefault(
                set_name, [f"|row|parameters|{'|'.join(p.name for p in points)}|", "|---|---:|" + "---:|" * len(points)]
            )
            own.append(line(name, points, facts[name].get("parameters", "")))
    if not facts:
        raise UserError(f"{plan.expdir}: no row has been scored; leave --table out")
    lines += [
        "<!-- generated by tools/ablation.py; do not edit: a rerun overwrites it -->",
        "",
        f"# Ablation: {plan.recipe.parent.name}",
        "",
    ]
    lines += [plan.note, "", "Cells: WER % [95 %] / MMACs per second of audio."]
    for set_name, own in sets.items():
        lines += ["", f"## {set_name}", "", *own]
    lines += ["", "## Rows", "", "|row|settings|epochs|training|", "|---|---|---:|---|"]
    for name, own_facts in facts.items():
        settings = " ".join(f"{key}: {value}" for key, value in plan.rows[name].items())
        lines.append(f"|{name}|`{settings}`|{epochs(plan.expdir / f'asr_{name}')}|{own_facts.get('training time', '-')}|")
    first = next(iter(facts.values()))
    kept = [f"- {key}: `{first[key]}`" for key in first if key.endswith("version") or key == "git hash"]
    lines += ["", "## Environments", "", *kept, f"- command: `python tools/ablation.py {' '.join(words)}`", ""]
    out = plan.recipe / "ABLATION.md"
    with atomic_write(out) as file:
        file.write("\n".join(lines))
    return out


def main() -> None:
    """Trains, and makes the table."""
    arguments = parse_arguments()
    until = time.monotonic() + arguments.seconds
    plan = read_plan(arguments.rows_file, arguments.rows, arguments.options)
    failed: list[str] = []
    if not arguments.table:
        prepare(plan)
        failed = train(plan, arguments.jobs, until)
    print(write_table(plan, sys.argv[1:]))
    if failed:
        raise UserError(
            f"not done: {', '.join(failed)}; see {plan.expdir}/log/ablation_*.log; the same command goes on with them"
        )


if __name__ == "__main__":
    run(main)
