"""Our task around ESPnet's worker: what it leaves behind when a distributed training ends."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_ee.errors import UserError
from espnet_ee.plugin.task import EarlyExitASRTask, adopt

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
# In place of ESPnet's worker one that only does what matters here. A process of its own: torch's imports are what is tested.
PROGRAM = """
import argparse, sys
from pathlib import Path
import torch
from espnet2.tasks.asr import ASRTask
from espnet_ee.errors import UserError
from espnet_ee.plugin.task import EarlyExitASRTask

def worker(cls, args):
    torch.distributed.init_process_group("gloo", init_method=f"file://{args.meet}", rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    if args.fails:
        raise RuntimeError("no more data")

def gloo_threads():
    return sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))

def state():
    return "in a group" if torch.distributed.is_initialized() else f"in no group, {gloo_threads()} threads"

ASRTask.main_worker = classmethod(worker)
EarlyExitASRTask.main_worker(argparse.Namespace(meet=f"{sys.argv[1]}/succeeding", fails=False))
print(state(), flush=True)
try:
    EarlyExitASRTask.main_worker(argparse.Namespace(meet=f"{sys.argv[1]}/failing", fails=True))
except RuntimeError as error:
    print(f"{error}, {state()}", flush=True)
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in Linux's /proc")
def test_a_worker_is_alone_again_before_the_interpreter_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    # A thread of gloo that outlives the worker dies of SIGABRT in the interpreter's end, about once in a hundred times.
    # One that fails stays in its group: leaving could wait for the others, who wait for it.
    assert done.stdout.splitlines()[-2:] == ["in no group, 0 threads", "no more data, in a group"], done.stderr[-3000:]


def test_lightning_training_has_our_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """asr.sh --use_lightning true. ESPnet's trainer would begin at random without a word, whatever --init_param says."""
    command = ModuleType("espnet2.bin.lightning_train")
    vars(command)["task_choices"] = choices = {"asr": ASRTask, "cls": object}
    adopt(command)
    assert choices["cls"] is object and issubclass(choices["asr"], EarlyExitASRTask)
    args = argparse.Namespace(encoder="early_exit_conformer", encoder_conf={}, init_param=["a.pth"])
    with pytest.raises(UserError, match="a.pth: ESPnet's Lightning trainer does not read it"):
        choices["asr"].build_model(args)
    monkeypatch.setattr(ASRTask, "build_model", lambda args: "model")
    args.init_param = []
    assert choices["asr"].build_model(args) == "model"


@pytest.mark.parametrize("name", ["asr_inference_streaming", "asr_inference_maskctc"])
@pytest.mark.parametrize(("encoder", "refused"), [("early_exit_conformer", True), ("contextual_block_conformer", False)])
def test_inference_of_other_models_is_theirs(monkeypatch: pytest.MonkeyPatch, name: str, encoder: str, refused: bool) -> None:
    command = ModuleType(f"espnet2.bin.{name}")
    vars(command)["ASRTask"] = ASRTask
    adopt(command)
    stock = (torch.nn.Identity(), argparse.Namespace(encoder=encoder))
    monkeypatch.setattr(ASRTask, "build_model_from_file", lambda *_, **__: stock)
    with pytest.raises(UserError, match="without --use_streaming") if refused else nullcontext():
        assert vars(command)["ASRTask"].build_model_from_file("config.yaml") == stock
