"""Two processes that fine-tune together: no parameter is waited for in vain, and what is frozen stays, whatever decays weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import hf

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import torch
import torch.distributed.nn.functional  # before there is a group, so that it can be left: see espnet_ee/plugin/task.py
from espnet_ee.plugin.finetuning import adapt_optimizers
from tests import hf

rank, folder, pretrained = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
plain = hf.model(pretrained, unfreeze_step=2, layerdrop=0.5, mask_time_prob=0.2, mask_time_length=2).train()
model = torch.nn.parallel.DistributedDataParallel(plain)
optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1)
adapt_optimizers([optimizer], plain, None)
states = [{name: value.clone() for name, value in plain.state_dict().items()}]
torch.manual_seed(rank)  # each skips blocks of its own
for step in range(6):
    speech, lengths, text, text_lengths = (values[rank : rank + 1] for values in hf.BATCH)
    loss = model(speech, lengths, text, text_lengths)[0]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    states.append({name: value.clone() for name, value in plain.state_dict().items()})
torch.save([states[0], states[2], states[6]], f"{folder}/{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_freeze_and_train_together(tmp_path: Path) -> None:
    (tmp_path / "pretrained").mkdir()
    pretrained = hf.save(tmp_path / "pretrained", "wavlm", True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, "-c", PROGRAM, str(rank), str(tmp_path), pretrained] for rank in range(2)]
    started = [subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    begin, frozen, trained = first
    moved = [{name for name in begin if not torch.equal(begin[name], state[name])} for state in (frozen, trained)]
    heads = ("ctc.", "exit_ctc.", "encoder.exit_norms.", "encoder.after_norm.", "encoder.updates")
    assert moved[0] == {name for name in begin if name.startswith(heads)}
    assert moved[1] == {name for name in begin if not name.startswith("encoder.feature_extractor.")}
