"""Cut-off checkpoints: none is written by us, and a training goes on from what is whole of those that are there."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.train.abs_espnet_model import AbsESPnetModel
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.trainer import Trainer, TrainerOptions

from espnet_ee.plugin.checkpoints import mend_folder, whole_files

CRITERIA = [["valid", "loss", "min"]]


class Line(AbsESPnetModel):
    """y = ax on a batch of one number: as many epochs a second as one likes."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, x_lengths: torch.Tensor, **_: Any) -> tuple:
        loss = (self.line(x) - 3).square().mean()
        return loss, {"loss": loss.detach()}, torch.tensor(1)

    def collect_feats(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return batch


class OneBatch(AbsIterFactory):
    def build_iter(self, epoch: int, shuffle: bool | None = None) -> Iterator:
        return iter([(["a"], {"x": torch.ones(1, 1), "x_lengths": torch.ones(1, dtype=torch.long)})])


def train(folder: Path, epochs: int, keep: int = 2, cut_in: Any = None) -> None:
    """ESPnet's trainer as our task runs it."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = Line()
    known = {
        "ngpu": 0, "resume": True, "use_amp": False, "train_dtype": "float32", "grad_noise": False, "accum_grad": 1, "grad_clip": 5.0,
        "grad_clip_type": 2.0, "log_interval": None, "no_forward_run": False, "use_tensorboard": False, "use_wandb": False,
        "wandb_model_log_interval": -1, "use_matplotlib": False, "output_dir": str(folder), "max_epoch": epochs, "seed": 0, "sharded_ddp": False,
        "patience": None, "keep_nbest_models": keep, "nbest_averaging_interval": 0, "early_stopping_criterion": CRITERIA[0],
        "best_model_criterion": CRITERIA, "val_scheduler_criterion": ["valid", "loss"], "unused_parameters": False,
        "create_graph_in_tensorboard": False, "use_adapter": False, "adapter": "", "save_strategy": "all", "adapter_conf": {},
        "use_deepspeed": False, "deepspeed_config": None, "gradient_as_bucket_view": False, "ddp_comm_hook": None,
    }  # fmt: skip
    fields = TrainerOptions.__dataclass_fields__
    options = TrainerOptions(**{name: known.get(name) for name in fields})
    mend_folder(folder, CRITERIA)
    with whole_files():
        Trainer.run(
            model,
            [torch.optim.SGD(model.parameters(), 0.01)],
            [None],
            OneBatch(),
            OneBatch(),
            None,
            options,
            DistributedOption(),
        )


def parameters(path: Path) -> list[float]:
    state = torch.load(path, weights_only=True)
    return [float(value) for value in state.values()]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four epochs, undisturbed."""
    folder = tmp_path_factory.mktemp("training") / "whole"
    train(folder, 4)
    return folder


@pytest.mark.parametrize("name", ["checkpoint.pth", "3epoch.pth", "2epoch.pth"])
@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_training_goes_on_after_a_file_was_damaged(tmp_path: Path, whole: Path, capsys, name: str, damage: str) -> None:
    folder = tmp_path / "exp"
    train(folder, 3)
    path = folder / name
    content = path.read_bytes()
    broken = {"cut": content[:-100], "empty": b"", "flipped": content[:-1000] + bytes([content[-1000] ^ 255]) + content[-999:]}
    path.write_bytes(broken[damage])
    train(folder, 4)
    said = capsys.readouterr().err
    assert said.count("warning: ") <= 2 and f"{path} is cut off or damaged" in said
    assert (folder / f"{name}.broken").read_bytes() == broken[damage]  # set aside, not lost
    assert parameters(folder / "4epoch.pth") == parameters(whole / "4epoch.pth")
    assert (folder / "valid.loss.ave.pth").resolve().name == "valid.loss.ave_2best.pth"
    assert parameters(folder / "valid.loss.ave.pth") == parameters(whole / "valid.loss.ave.pth")


def test_without_any_whole_checkpoint_a_training_begins_again_and_says_what_is_left(
    tmp_path: Path, whole: Path, capsys
) -> None:
    folder = tmp_path / "exp"
    train(folder, 3)
    left = parameters(folder / "3epoch.pth")
    (folder / "1e-3_epoch.pth").write_text("the user's own")
    cut(folder / "checkpoint.pth")
    cut(folder / "checkpoint.pth.old")
    train(folder, 4)
    said = capsys.readouterr().err
    assert "begins again at epoch 1" in said and "3epoch.pth.old" in said
    assert parameters(folder / "3epoch.pth.old") == left and (folder / "1e-3_epoch.pth").exists()
    assert parameters(folder / "4epoch.pth") == parameters(whole / "4epoch.pth")


@pytest.mark.parametrize("missing", ["4epoch.pth", "latest.pth", "valid.loss.best.pth"])
def test_an_epoch_that_was_cut_off_after_its_checkpoint_is_finished(tmp_path: Path, whole: Path, missing: str) -> None:
    folder = tmp_path / "exp"
    train(folder, 3)
    linked = {name: (folder / name).readlink() for name in ("latest.pth", "valid.loss.best.pth")}
    train(folder, 4)
    # As when the process ends between checkpoint.pth and the rest.
    (folder / missing).unlink()
    if missing == "4epoch.pth":
        for name, target in linked.items():
            (folder / name).unlink()
            (folder / name).symlink_to(target)
    train(folder, 4)
    for name in ("4epoch.pth", "latest.pth", "valid.loss.best.pth", "valid.loss.ave.pth"):
        assert parameters(folder / name) == parameters(whole / name)


def test_more_epochs_can_be_averaged_than_were_kept(tmp_path: Path) -> None:
    """keep_nbest_models may change while a training goes on: of the older epochs some are gone."""
    train(tmp_path / "exp", 4, keep=2)
    train(tmp_path / "exp", 5, keep=5)
    assert (tmp_path / "exp" / "valid.loss.ave.pth").resolve().name == "valid.loss.ave_3best.pth"


def test_a_file_is_whole_or_as_before_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    with whole_files():
        torch.save({"model": torch.zeros(9)}, path)
        before = path.read_bytes()
        stock = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limit[1]))
        try:
            with pytest.raises(OSError, match=str(path)) as error:
                torch.save({"model": torch.zeros(1 << 16)}, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, stock)
    assert error.value.errno == errno.EFBIG
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_only_names_are_written_by_way_of_a_temporary_one_and_only_while_training(tmp_path: Path) -> None:
    stock = torch.save
    with whole_files(), open(tmp_path / "model.pth", "wb") as stream:
        assert torch.save is not stock
        torch.save({"a": torch.zeros(1)}, stream)
    assert torch.save is stock and parameters(tmp_path / "model.pth") == [0.0]


def test_what_a_killed_process_was_writing_goes(tmp_path: Path) -> None:
    train(tmp_path / "exp", 1)
    (tmp_path / "exp" / ".checkpoint.pth.abc.tmp").write_bytes(b"half")
    train(tmp_path / "exp", 2)
    assert not list((tmp_path / "exp").glob("*.tmp"))
    assert not list((tmp_path / "exp").glob(".*.tmp"))
