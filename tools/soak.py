#!/usr/bin/env python3
"""Does what people and machines do to a recipe, thousands of times, and checks after each that nothing was lost or mixed.

    tools/soak.py --operations 2000            # some hours; --seed another story, --minutes an end

An operation runs stages of the LibriSpeech recipe on a corpus of a few seconds, kills them by SIGKILL, starts them twice, changes
an option, moves the folder, cuts, touches or deletes a file, edits a transcript as a user would, or fills the disk (a small
tmpfs, where mounts are allowed). The programs are the real ones; their imports are done once (``tools/forking_python.py``).
What must hold after each:

- no file of the user's is gone: corpus, notes in the experiments, edited transcripts;
- no finished training is repeated, or touched;
- no experiment is mixed: its parameters are of the sizes of its configuration, its decodings of one model;
- what fails says so in one line, without a traceback;
- in the end a plain run succeeds, and data and features are those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from espnet_ee.data.mini.make import make_corpus  # noqa: E402
from tools.forking_python import interpreter  # noqa: E402

RECIPE = ROOT / "egs" / "librispeech" / "asr1"
TMPFS_MB = 48
OPTIONS = {
    "train_set": "train_clean_5", "valid_set": "dev", "test_sets": "test", "hold_out": "4", "nj": "1", "ngpu": "0",
    "speed_perturb": "stored", "speed_perturb_factors": "", "token_type": "char", "asr_config": "train_tiny.yaml",
    "datadir": "data", "dumpdir": "dump", "expdir": "exp", "asr_args": "", "seed": "", "batch_size": "", "max_wav_duration": "30",
    "calibrate_policies": "entropy", "calibrate_targets": "mean_layer=1", "online_policies": "entropy", "feats_type": "raw",
}  # fmt: skip
CHOICES = {
    "speed_perturb_factors": ("", "0.9 1.0"),
    "asr_args": ("", "--max_epoch 2", "--encoder_conf output_size=12"),
    "seed": ("", "3"),
    "batch_size": ("", "2"),
    "max_wav_duration": ("30", "2.5"),
    "nj": ("1", "2"),
    "feats_type": ("raw", "extracted"),
}
TRAINING = {
    "encoder": "early_exit_conformer",
    "encoder_conf": {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 2, "exit_layers": [1, 2]},
    "model": "early_exit", "model_conf": {"ctc_weight": 1.0}, "frontend_conf": {"n_fft": 512, "hop_length": 160},
    "optim": "adam", "batch_type": "numel", "batch_bins": 400000, "max_epoch": 1, "num_workers": 0, "num_att_plot": 0,
    "use_matplotlib": False, "use_tensorboard": False, "best_model_criterion": [["valid", "loss", "min"]], "keep_nbest_models": 1,
}  # fmt: skip
TRACEBACK = re.compile(r'^(Traceback|  File ".*", line \d+)', re.MULTILINE)  # of which a log's end may show the end only
ERROR = re.compile(r"^[\w.-]+: error: \S")
LEFT_OVERS = (".tmp", ".old", ".log", ".lock", ".journal")


class Violation(Exception):
    """Something that must hold does not."""


@dataclass
class Result:
    """How a run of the recipe ended."""

    status: int
    said: str
    errors: str


@dataclass
class Story:
    """The folder, the user's options and files, and what has been seen."""

    top: Path
    python: Path
    chance: random.Random
    mounted: bool
    folder: Path = field(init=False)
    options: dict[str, str] = field(default_factory=lambda: dict(OPTIONS))
    kept: dict[str, str] = field(default_factory=dict)  # content -> what it is
    edited: set[Path] = field(default_factory=set)
    finished: dict[str, str] = field(default_factory=dict)  # identity of a training -> its parameters
    moves: int = 0

    def __post_init__(self) -> None:
        self.folder = self.top / "recipe"
        self.set_up(self.folder)
        for path in (self.top / "corpus").rglob("*"):
            if path.is_file():
                self.keep(path)

    def set_up(self, folder: Path) -> None:
        """The recipe, as links to the checkout's, and a configuration."""
        folder.mkdir()
        for name in ("asr_ee.sh", "cmd.sh", "path.sh", "db.sh", "utils", "local", "conf"):
            (folder / name).symlink_to(RECIPE / name)
        (folder / "run.sh").write_bytes((RECIPE / "run.sh").read_bytes())
        (folder / "train_tiny.yaml").write_text(yaml.safe_dump(TRAINING), encoding="utf-8")

    def keep(self, path: Path) -> None:
        """From now on this content must be somewhere."""
        self.kept[digest(path)] = str(path.relative_to(self.top))

    def start(
        self, first: int, last: int, folder: Path | None = None, options: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts stages in a process group of their own."""
        given = {**(options or self.options), "stage": str(first), "stop_stage": str(last)}
        given |= {"librispeech_root": str(self.top / "corpus"), "python": str(self.python)}
        return subprocess.Popen(
            ["bash", "run.sh", *(f"--{name}={value}" for name, value in given.items())],
            cwd=folder or self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ESPNET_EE_LOCK_SECONDS": "20"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, first: int, last: int, folder: Path | None = None, options: dict[str, str] | None = None) -> Result:
        """Runs stages to their end, and checks how they end."""
        return self.end(self.start(first, last, folder, options))

    def end(self, process: subprocess.Popen[str]) -> Result:
        said, errors = process.communicate()
        result = Result(process.returncode, said, errors)
        if TRACEBACK.search(said + errors):
            raise Violation(f"a traceback:\n{said[-2000:]}{errors[-4000:]}")
        if result.status:
            lines = [line for line in errors.splitlines() if line.strip()]
            if not lines or not ERROR.match(lines[-1]):
                raise Violation(f"status {result.status} without a line that says why:\n{said[-2000:]}{errors[-4000:]}")
        return result

    def stages(self) -> tuple[int, int]:
        """Mostly the cheap ones."""
        first = self.chance.choice((1, 1, 1, 2, 3, 5, 10, 11, 12, 13))
        return first, max(first, self.chance.choice((3, 5, 5, 10, 11, 13, 14)))

    def files(self, *tops: str) -> list[Path]:
        """What the recipe has made."""
        found = (path for top in tops for path in sorted((self.folder / top).rglob("*")))
        return [
            path
            for path in found
            if path.is_file() and not path.is_symlink() and path.suffix != ".lock" and "notes" not in path.name
        ]

    def experiments(self) -> list[Path]:
        """Trained or begun, also those that were put aside."""
        return [path.parent for path in sorted(self.folder.glob("exp/asr_*/config.yaml")) if "stats" not in path.parent.name]

    def check(self) -> None:
        """Everything that must hold at any time."""
        there = {digest(path) for path in self.top.rglob("*") if path.is_file()}
        for content, name in self.kept.items():
            if content not in there:
                raise Violation(f"the user's file {name} is gone")
        for folder in self.experiments():
            self.check_experiment(folder)

    def check_experiment(self, folder: Path) -> None:
        config = read_plain(folder / "config.yaml")
        if config is None and not (folder / ".stage11.done").exists():
            return  # ESPnet was writing it when it was killed, or the disk full; the next training writes it again
        size = config["encoder_conf"]["output_size"]
        for path in folder.glob("*epoch.pth"):
            (norm,) = {value.numel() for name, value in parameters(path).items() if name == "encoder.after_norm.weight"} or {
                size
            }
            if norm != size:
                raise Violation(f"{path}: {norm} wide, its config.yaml says {size}")
        mark, model = folder / ".stage11.done", folder / "valid.loss.ave.pth"
        if mark.exists() and model.exists():
            identity, content = digest(mark), digest(model)
            if self.finished.setdefault(identity, content) != content:
                raise Violation(f"{folder}: the finished training was repeated: it has other parameters now")
        if (folder / ".stage12.done").exists():
            facts = [read_plain(path) for path in folder.glob("decode_*/*/decode.yaml")]
            current = {fact["model_digest"] for fact in facts if fact.get("every_exit")}
            if len(current) > 1:
                raise Violation(f"{folder}: evidence of several models")

    # --- operations ---------------------------------------------------------------------------------------------------

    def run_stages(self) -> str:
        stages = self.stages()
        return f"run {stages}: {self.run(*stages).status}"

    def kill(self) -> str:
        stages, seconds = self.stages(), self.chance.choice((0.1, 0.3, 1, 2, 4, 8)) * self.chance.uniform(0.5, 1.5)
        process = self.start(*stages)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"kill {stages} after {seconds:.2f} s"

    def change_option(self) -> str:
        name = self.chance.choice(sorted(CHOICES))
        self.options[name] = self.chance.choice(CHOICES[name])
        return f"{name} = {self.options[name]!r}"

    def twice(self) -> str:
        stages = self.stages()
        environment, os.environ["ESPNET_EE_LOCK_SECONDS"] = dict(os.environ), "0"
        results = [self.end(process) for process in (self.start(*stages), self.start(*stages))]
        os.environ.pop("ESPNET_EE_LOCK_SECONDS")
        os.environ.update(environment)
        if all(" is in use by " in result.errors for result in results):
            raise Violation("of two runs at once each was refused because of the other")
        return f"twice {stages}: {[result.status for result in results]}"

    def move(self) -> str:
        self.moves += 1
        target = self.top / f"recipe {self.moves}"
        self.folder.rename(target)
        self.edited = {target / path.relative_to(self.folder) for path in self.edited}
        self.folder = target
        return f"move to {target.name}"

    def touch(self) -> str:
        files = self.files("data", "dump", "exp")
        for path in self.chance.sample(files, min(3, len(files))):
            os.utime(path)
        return "touch"

    def cut(self) -> str:
        files = [
            path for path in self.files("data", "dump", "exp") if path not in self.edited and digest(path) not in self.kept
        ]
        if not files:
            return "cut nothing"
        path = self.chance.choice(files)
        whole = path.read_bytes()
        short = whole[: int(len(whole) * self.chance.random())]
        path.write_bytes(short)
        stages = self.stages()
        before, self.finished = self.finished, {}  # parameters may be among what was cut
        status = self.run(*stages).status
        if path.exists() and path.read_bytes() == short:
            path.write_bytes(whole)
        self.finished = before if "exp" not in path.parts else {}
        return f"cut {path.relative_to(self.folder)}, run {stages}: {status}"

    def delete(self) -> str:
        folders = [
            path for top in ("data", "dump/raw", "dump/extracted", "exp") for path in sorted((self.folder / top).glob("*"))
        ]
        folders = [path for path in folders if path.is_dir() and not any(digest(file) in self.kept for file in all_files(path))]
        if not folders:
            return "delete nothing"
        path = self.chance.choice(folders)
        shutil.rmtree(path)
        self.finished = {}
        return f"delete {path.relative_to(self.folder)}"

    def note(self) -> str:
        folders = self.experiments()
        if not folders:
            return "note nowhere"
        path = self.chance.choice(folders) / f"notes{self.chance.randrange(1000)}.txt"
        path.write_text(f"do not lose this: {self.chance.random()}\n", encoding="utf-8")
        self.keep(path)
        return f"note {path.relative_to(self.folder)}"

    def edit(self) -> str:
        """Corrects a transcript by hand; or gives a correction up, and with it the data directory."""
        if self.edited and self.chance.random() < 0.7:
            return f"give {self.give_up().relative_to(self.folder)} up"
        texts = [path for path in self.folder.glob("data/*/text") if path not in self.edited]
        if not texts:
            return "edit nothing"
        path = self.chance.choice(texts)
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([f"{lines[0]} CORRECTED", *lines[1:]]) + "\n", encoding="utf-8")
        self.edited.add(path)
        self.keep(path)
        return f"edit {path.relative_to(self.folder)}"

    def give_up(self) -> Path:
        """Deletes a data directory whose transcript was corrected, as its user may."""
        path = self.edited.pop()
        self.kept.pop(digest(path) if path.exists() else "", None)
        shutil.rmtree(path.parent, ignore_errors=True)
        return path

    def fill(self) -> str:
        """Lets a run meet a full disk, sooner or later."""
        if not self.mounted:
            return "no tmpfs to fill"
        filler, stages = self.top / "filler", self.stages()
        room = shutil.disk_usage(self.top).free - self.chance.choice((0, 4096, 50_000, 300_000, 1_000_000))
        filler.write_bytes(bytes(max(0, room)))
        try:
            return f"full disk, run {stages}: {self.run(*stages).status}"
        finally:
            filler.unlink()


OPERATIONS: dict[str, int] = {
    "run_stages": 6, "kill": 6, "change_option": 4, "twice": 2, "move": 2, "touch": 2, "cut": 3, "delete": 1, "note": 1, "edit": 1, "fill": 3,
}  # fmt: skip


def digest(path: Path) -> str:
    """What a file holds; looked at again when it has changed, for hundreds are asked for after every operation."""
    state = path.stat()
    return _digest(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=100_000)
def _digest(path: Path, *_: int) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def read_plain(path: Path) -> Any:
    """Plain YAML, by the quick reader where there is one."""
    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def all_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def parameters(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def final_files(folder: Path) -> dict[str, str]:
    """What stages 1 to 5 leave."""
    paths = [path for top in ("data", "dump") for path in all_files(folder / top)]
    paths = [path for path in paths if not any(part.endswith(LEFT_OVERS) for part in path.parts)]
    return {str(path.relative_to(folder)): digest(path) for path in paths}


def end_of_story(story: Story) -> None:
    """Everything can still be had: with the first options, stages 1 to 13, as if nothing had been."""
    while story.edited:
        story.give_up()
    for name in ("data", "dump"):
        shutil.rmtree(story.folder / f"{name}.old", ignore_errors=True)
    result = story.run(1, 13, options={**OPTIONS, "asr_args": "--max_epoch 2"})  # with fewer it would be refused
    if result.status:
        raise Violation(f"the last run failed: {result.said[-2000:]}{result.errors[-2000:]}")
    whole = story.top / "undisturbed"
    story.set_up(whole)
    story.run(1, 5, whole, OPTIONS)
    wanted, found = final_files(whole), final_files(story.folder)
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        raise Violation(f"other files than without all that: {differing[:5]} ({len(differing)} of {len(wanted)})")


@contextmanager
def workspace(keep: Path | None) -> Iterator[tuple[Path, bool]]:
    """An empty folder, a small tmpfs where that is allowed; it stays if the story ends badly."""
    top = keep or Path(tempfile.mkdtemp(prefix="soak"))
    top.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MB}m", "soak", str(top)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield top, mounted
    if mounted:
        subprocess.run(["umount", "--lazy", str(top)], check=False)
    shutil.rmtree(top, ignore_errors=True)


def play(story: Story, count: int, until: float, tell: Callable[[str], None]) -> int:
    """Does the operations, and checks after each; gives their number."""
    names, weights = list(OPERATIONS), list(OPERATIONS.values())
    tell(f"  0 run (1, 5): {story.run(1, 5).status}")
    for number in range(1, count + 1):
        if time.monotonic() > until:
            return number - 1
        name = story.chance.choices(names, weights)[0]
        started = time.monotonic()
        said = getattr(story, name)()
        story.check()
        tell(f"{number:3d} {said} ({time.monotonic() - started:.1f} s)")
    return count


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--operations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no further operation after so long")
    parser.add_argument("--folder", type=Path, help="a new folder to play in (default: a temporary one)")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    with (
        tempfile.TemporaryDirectory() as place,
        interpreter(Path(place)) as python,
        workspace(options.folder) as (top, mounted),
    ):
        corpus = top / "corpus"
        make_corpus(corpus, nj=1, utterances_per_speaker=1)
        (corpus / "LibriSpeech").mkdir()
        (corpus / "LibriSpeech" / "train-clean-5").symlink_to(corpus / "MiniSpeech" / "train")
        story = Story(top, python, random.Random(options.seed), mounted)
        try:
            done = play(story, options.operations, until, lambda line: print(line, flush=True))
            end_of_story(story)
            story.check()
        except Violation as violation:
            sys.exit(f"VIOLATION in {top} (seed {options.seed}): {violation}")
    print(f"{done} operations, nothing lost, nothing mixed")


if __name__ == "__main__":
    main()
