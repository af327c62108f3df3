"""Two processes that share a batch train an early-exit model, of CTC heads or with decoders, as one process with the whole batch does.

Over gloo on the CPU, with ESPnet's own weighting of the parts (its trainer's). BatchNorm keeps the statistics it has: in
training they are those of a process' own part, in ESPnet as everywhere without synchronised BatchNorm.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3

PROGRAM = """
import sys
import torch
import torch.distributed.nn.functional  # before there is a group, so that it can be left: see espnet_ee/plugin/task.py
from espnet2.torch_utils.recursive_op import recursive_average
from tests import tiny

STILL = {"dropout_rate": 0.0, "positional_dropout_rate": 0.0}
AED = tiny.attention()
AED["decoder_conf"].update(STILL)
KINDS = {"ctc": {}, "attention": AED}

def train(rank, world, steps, kind):
    conf = {**tiny.CONFORMER, **STILL, "attention_dropout_rate": 0.0, "exit_layers": [1, 2, 4], "exit_norm": "separate"}
    plain = tiny.model(encoder_conf=conf, **KINDS[kind])
    plain.double().train()  # so that equal means equal: in single precision three steps part by some 1e-5
    for part in plain.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            part.eval()
    model = torch.nn.parallel.DistributedDataParallel(plain) if world > 1 else plain
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        # Five, so that the parts are not of one size. The longest one is in both: ESPnet's frontend mirrors the signal at
        # the end of the longest utterance and sees zeros after all others, so the last frame depends on the padding.
        lengths = torch.tensor([16000, 16000, 12000, 7000, 10000])
        speech, text = torch.randn(5, 16000, dtype=torch.float64), torch.randint(2, 7, (5, 4))
        speech = speech * (torch.arange(16000) < lengths[:, None])
        mine = slice(rank, None, world)  # as ESPnet's sampler deals a batch out
        loss, stats, weight = model(speech[mine], lengths[mine], text[mine], torch.full((len(lengths[mine]),), 4))
        loss = (loss * weight.type(loss.dtype)).sum()
        stats, weight = recursive_average(stats, weight, world > 1)
        optimizer.zero_grad()
        (loss / weight * world).backward()
        optimizer.step()
        losses.append({name: float(value) for name, value in stats.items() if name.startswith("loss")})
    return {"losses": losses, "parameters": dict(plain.named_parameters())}

rank, folder, steps = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.save({kind: train(rank, 2, steps, kind) for kind in KINDS}, f"{folder}/{rank}.pt")
torch.distributed.barrier()
if rank == 0:
    torch.save({kind: train(0, 1, steps, kind) for kind in KINDS}, f"{folder}/alone.pt")
torch.distributed.destroy_process_group()
"""


def run_both(folder: Path) -> None:
    """Starts the two processes together and waits for them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, "-c", PROGRAM, str(rank), str(folder), str(STEPS)] for rank in range(2)]
    started = [subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    run_both(tmp_path)
    saved = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0", "1", "alone")]
    for kind in ("ctc", "attention"):
        check(*(results[kind] for results in saved))
    assert "loss_att_exit02" in saved[2]["attention"]["losses"][0]


def check(first: dict[str, Any], second: dict[str, Any], alone: dict[str, Any]) -> None:
    assert len(alone["losses"]) == STEPS and alone["losses"][0]["loss"] != alone["losses"][-1]["loss"]
    assert {"loss", "loss_exit01", "loss_exit02", "loss_exit04"} <= alone["losses"][0].keys()
    for step in range(STEPS):
        assert first["losses"][step] == second["losses"][step] == pytest.approx(alone["losses"][step], rel=1e-6)
    for name, value in alone["parameters"].items():
        assert torch.equal(first["parameters"][name], second["parameters"][name]), name
        torch.testing.assert_close(first["parameters"][name], value, rtol=1e-6, atol=1e-9)
