"""The whole pipeline on a cut-down embedded corpus: stages 1 to 15, twice; the second time nothing changes."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

RECIPE = Path(__file__).resolve().parents[2] / "egs" / "mini" / "asr1"

TINY = {
    "encoder": "early_exit_conformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 16,
        "num_blocks": 2,
        "macaron_style": True,
        "rel_pos_type": "latest",
        "pos_enc_layer_type": "rel_pos",
        "selfattention_layer_type": "rel_selfattn",
        "activation_type": "swish",
        "cnn_module_kernel": 3,
        "exit_layers": [1, 2],
    },
    "model": "early_exit",
    "model_conf": {"ctc_weight": 1.0},
    "frontend_conf": {"n_fft": 512, "hop_length": 160},
    "optim": "adam",
    "optim_conf": {"lr": 1.0e-3},
    "batch_type": "numel",
    "batch_bins": 1000000,
    "max_epoch": 1,
    "num_workers": 0,
    "best_model_criterion": [["valid", "loss", "min"]],
    "keep_nbest_models": 1,
    "num_att_plot": 0,
}

State = dict[str, tuple[bytes, int]]


class Workspace:
    """A folder that holds everything the mini recipe makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "train_tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")

    def run(self, *options: str, status: int = 0) -> subprocess.CompletedProcess:
        """Runs the recipe with this interpreter; later options win."""
        result = subprocess.run(
            [
                "bash",
                str(RECIPE / "run.sh"),  # from any folder
                *("--datadir", str(self.folder / "data")),
                *("--dumpdir", str(self.folder / "dump")),
                *("--expdir", str(self.folder / "exp")),
                *("--asr_config", str(self.folder / "train_tiny.yaml")),
                *("--utterances_per_speaker", "2"),
                *options,
            ],
            cwd=self.folder,
            env={**os.environ, "ESPNET_EE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == status, result.stdout[-3000:] + result.stderr[-5000:]
        return result

    def state(self) -> State:
        """Content and time of every file, and every folder's time."""
        return {
            str(path.relative_to(self.folder)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
            for path in sorted(self.folder.rglob("*"))
        }


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The recipe, run once from stage 1 to 14 with perturbed speed."""
    made = Workspace(tmp_path_factory.mktemp("mini"))
    made.run("--speed_perturb_factors", "0.9 1.0")
    return made


EXPERIMENT = "exp/asr_train_tiny_raw_char_sp"


def test_every_stage_left_its_files(workspace: Workspace):
    for name in (
        "data/train/wav.scp",
        "data/train_sp/wav.scp",
        "dump/raw/train_sp/wav.scp",
        "dump/raw/dev/text",
        "data/token_list/char/tokens.txt",
        "exp/asr_stats_raw_char_sp/train/feats_stats.npz",
        f"{EXPERIMENT}/valid.loss.best.pth",
        f"{EXPERIMENT}/train_time.yaml",
        *(f"{EXPERIMENT}/decode_all_exits/{name}/evidence.tsv" for name in ("dev", "test")),
        *(f"{EXPERIMENT}/decode_entropy/{name}/utt2exit" for name in ("dev", "test")),
        f"{EXPERIMENT}/RESULTS.md",
        f"{EXPERIMENT}/exits.csv",
        f"{EXPERIMENT}/curve.png",
        f"{EXPERIMENT}/policies/decode_learned_wer_loss1.yaml",
        f"{EXPERIMENT}/package/README.md",
        f"{EXPERIMENT}/package/model.safetensors",
    ):
        assert (workspace.folder / name).stat().st_size > 0, name
    assert not list(workspace.folder.rglob("*.tmp"))


def test_dev_and_test_are_never_filtered_or_perturbed(workspace: Workspace):
    for name in ("dev", "test"):
        made, scored = (workspace.folder / folder / name / "text" for folder in ("data", "dump/raw"))
        assert made.read_text(encoding="utf-8") == scored.read_text(encoding="utf-8")


def test_a_second_run_changes_nothing(workspace: Workspace):
    before = workspace.state()
    result = workspace.run("--speed_perturb_factors", "0.9 1.0")
    assert workspace.state() == before
    assert "stage 11: training: done, skipped" in result.stdout


def test_the_command_in_the_results_can_be_run(workspace: Workspace):
    text = (workspace.folder / EXPERIMENT / "RESULTS.md").read_text(encoding="utf-8")
    assert "cd egs/mini/asr1 && ./run.sh --datadir" in text
    assert "--speed_perturb_factors '0.9 1.0'" in text


def test_a_changed_option_redoes_its_stage_only(workspace: Workspace, tmp_path: Path):
    before = workspace.state()
    workspace.run(
        *("--speed_perturb_factors", "0.9 1.0"),
        *("--stage", "12"),
        *("--stop_stage", "14"),
        *("--note", "second look"),
        *("--results_dir", str(tmp_path)),
    )
    changed = {name for name, value in workspace.state().items() if before.get(name) != value}
    assert f"{EXPERIMENT}/RESULTS.md" in changed
    assert all(name.startswith(EXPERIMENT) for name in changed)
    decoded = {"evidence.tsv", "timing.tsv", "utt2exit", "text", "decode.yaml", ".done"}
    assert not any(Path(name).name in decoded or name.endswith(".pth") for name in changed)
    copied = {"RESULTS.md", "exits.csv", "curve.png"}
    assert {path.name for path in tmp_path.iterdir()} == copied
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8").count("second look") == 1  # not in the command, too


def test_the_package_holds_the_policies_that_ran_and_those_that_were_calibrated(workspace: Workspace):
    calibrated = {path.stem for path in (workspace.folder / EXPERIMENT / "policies").glob("decode_*.yaml")}
    assert len(calibrated) > 4
    package = workspace.folder / EXPERIMENT / "package"
    assert {path.stem for path in package.glob("decode_*.yaml")} == {"decode_entropy", *calibrated}
    assert yaml.safe_load((package / "package.yaml").read_text(encoding="utf-8"))["default"] == "entropy"
    card = (package / "README.md").read_text(encoding="utf-8")
    assert "|`learned_wer_loss1`|learned threshold=" in card


@pytest.mark.parametrize("stage", ["13", "14", "15"])
def test_nothing_is_said_of_a_model_by_the_decodings_of_another(workspace: Workspace, stage: str):
    other = workspace.folder / EXPERIMENT / "other.pth"
    other.write_bytes(b"another model")
    before = workspace.state()
    options = (
        "--speed_perturb_factors",
        "0.9 1.0",
        "--inference_asr_model",
        "other.pth",
        "--stage",
        stage,
        "--stop_stage",
        stage,
    )
    result = workspace.run(*options, status=1)
    assert "was decoded with another model than" in result.stderr and "run stage 12 first" in result.stderr
    assert workspace.state() == before
    other.unlink()


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_failing_training_says_why_and_is_not_taken_for_done(workspace: Workspace):
    options = ("--speed_perturb_factors", "0.9 1.0", "--stage", "11", "--asr_tag", "broken", "--asr_args", "--optim nonsense")
    result = workspace.run(*options, status=1)
    assert "nonsense" in result.stderr and "train.log" in result.stderr
    assert not (workspace.folder / "exp/asr_broken/.stage11.done").exists()


def test_a_missing_stage_is_named(workspace: Workspace):
    result = workspace.run("--stage", "12", "--asr_tag", "never_trained", status=1)
    assert "run stage 11 first" in result.stderr


def test_stored_features(workspace: Workspace):
    """feats_type extracted, on the same data, up to the scores."""
    options = (
        "--feats_type",
        "extracted",
        "--stage",
        "3",
        "--stop_stage",
        "13",
        "--test_sets",
        "dev",
        "--inference_configs",
        "",
    )
    workspace.run(*options)
    assert (workspace.folder / "exp/asr_train_tiny_extracted_char/RESULTS.md").is_file()
    before = workspace.state()
    workspace.run(*options)
    assert workspace.state() == before
