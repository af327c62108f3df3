"""The whole pipeline on a cut-down embedded corpus: stages 1 to 15, twice; the second time nothing changes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import yaml

from tests import tiny

pytestmark = pytest.mark.process
ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs" / "mini" / "asr1"
EPOCHS = 4
TRAINING = {
    **tiny.TRAINING,
    "batch_type": "numel",
    "batch_bins": 150000,
    "max_epoch": EPOCHS,
    "optim_conf": {"lr": 5.0e-3},
    "num_workers": 0,
    "keep_nbest_models": 1,
}

State = dict[str, tuple[bytes, int]]


class Workspace:
    """A folder that holds everything the mini recipe makes; its name has signs that YAML and shells read."""

    speeds = ("--speed_perturb_factors", "0.9 1.0")

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "exp #1: it's $HOME; *"
        self.folder.mkdir()
        (self.folder / "train_tiny.yaml").write_text(yaml.safe_dump(TRAINING), encoding="utf-8")

    def run(self, *options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs the recipe with this interpreter; later options win."""
        result = subprocess.run(
            [
                "bash",
                str(RECIPE / "run.sh"),  # from any folder
                *("--datadir", str(self.folder / "data")),
                *("--dumpdir", str(self.folder / "dump")),
                *("--expdir", str(self.folder / "exp")),
                *("--asr_config", str(self.folder / "train_tiny.yaml")),
                *("--utterances_per_speaker", "1"),
                *("--feats_normalize", "global_mvn"),
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
        """Content and time of every file but locks and configurations, and every folder's time."""
        return {
            str(path.relative_to(self.folder)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
            for path in sorted(self.folder.rglob("*"))
            if path.suffix not in (".lock", ".yaml") or path.parent != self.folder
            if path.suffix != ".lock"
        }


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The recipe, run once with perturbed speed, up to the trained model."""
    workspace = Workspace(tmp_path_factory.mktemp("mini"))
    workspace.said = workspace.run(*workspace.speeds, "--stop_stage", "11").stdout
    return workspace


@pytest.fixture(scope="module")
def whole(workspace: Workspace) -> Workspace:
    """The rest of the stages."""
    workspace.run(*workspace.speeds, "--stage", "12")
    return workspace


EXPERIMENT = "exp/asr_train_tiny_raw_char_sp"
MODEL = f"{EXPERIMENT}/valid.loss.best.pth"


def test_the_model_learns(workspace: Workspace) -> None:
    losses = [float(loss) for loss in re.findall(r"epoch \d+: loss [\d.]+ dev loss ([\d.]+)", workspace.said)]
    assert len(losses) == EPOCHS
    assert losses[-1] < 0.95 * losses[0]  # as far as the plateau of blanks that CTC begins with


def test_dev_and_test_are_never_filtered_or_perturbed(workspace: Workspace) -> None:
    for name in ("dev", "test"):
        source, scored = (workspace.folder / folder / name / "text" for folder in ("data", "dump/raw"))
        assert source.read_text(encoding="utf-8") == scored.read_text(encoding="utf-8")


def test_nothing_is_made_beside_the_folders(workspace: Workspace) -> None:
    assert {path.name for path in workspace.folder.parent.iterdir()} == {workspace.folder.name}
    tops = {path.name for path in workspace.folder.iterdir() if path.suffix != ".lock"}
    assert tops == {"data", "dump", "exp", "train_tiny.yaml"}


def test_a_failing_training_says_why_and_is_not_taken_for_done(workspace: Workspace) -> None:
    options = (*workspace.speeds, "--stage", "11", "--asr_tag", "broken", "--asr_args", "--optim nonsense")
    result = workspace.run(*options, status=1)
    assert "nonsense" in result.stderr and "train.log" in result.stderr
    assert not (workspace.folder / "exp/asr_broken/.stage11.done").exists()


def test_units_that_cannot_be_learned_are_a_warning_each_time(workspace: Workspace, tmp_path: Path) -> None:
    config = tmp_path / "train_slow.yaml"
    config.write_text(yaml.safe_dump({**TRAINING, "frontend_conf": {"hop_length": 400}}), encoding="utf-8")
    units = ("--token_type", "bpe", "--nbpe", "32", "--asr_args", "--encoder_conf input_layer=conv2d8")
    for _ in range(2):
        options = (*workspace.speeds, *units, "--asr_config", str(config), "--stage", "5", "--stop_stage", "5")
        said = workspace.run(*options).stderr.splitlines()
        assert len(said) == 2 and all(line.startswith("espnet-ee: warning: ") for line in said)
        assert re.search(r"\d+ of 36 training utterances .* \(subsampling conv2d8\)", said[0]) and "BPE units" in said[1]


def test_a_missing_stage_is_named(workspace: Workspace) -> None:
    result = workspace.run("--stage", "12", "--asr_tag", "never_trained", status=1)
    assert "run stage 11 first" in result.stderr
    shapes = next((workspace.folder / "exp").glob("asr_stats_*/train/speech_shape"))
    whole = shapes.read_bytes()
    shapes.write_bytes(b"".join(whole.splitlines(keepends=True)[:-3]))  # ESPnet would train on the rest
    said = workspace.run(*workspace.speeds, "--stage", "11", "--stop_stage", "11", status=1).stderr
    assert said.endswith("a file was changed or cut since stage 10 made it; run stage 10 first\n") and said.count("\n") == 1
    assert "statistics; log" in workspace.run(*workspace.speeds, "--stage", "10", "--stop_stage", "11").stdout
    assert shapes.read_bytes() == whole
    dump = workspace.folder / "dump" / "raw"
    for name, stage in (
        ("train_sp", "train_sp/text is missing; run stage 4 first"),
        ("org", "is not there; run stage 3 first"),
    ):
        (dump / name).rename(dump / "away")
        said = workspace.run(*workspace.speeds, "--stage", "11", "--stop_stage", "11", status=1).stderr
        (dump / "away").rename(dump / name)
        assert said.startswith("asr_ee.sh: error: ") and said.endswith(f"{stage}\n") and said.count("\n") == 1  # no traceback


def test_statistics_of_what_was_before_are_refused(workspace: Workspace) -> None:
    """Another training set of stage 4, or another frontend: ESPnet would end in a KeyError, or normalise by other features."""
    stages = ("--stage", "11", "--stop_stage", "11", "--asr_tag", "stale")
    longest = ("--max_wav_duration", "1.5", "--stage", "4", "--stop_stage", "4")
    workspace.run(*workspace.speeds, *longest)
    said = [workspace.run(*workspace.speeds, *stages, status=1).stderr]
    stats = workspace.folder / "exp" / "asr_stats_raw_char_sp"
    theirs = workspace.folder / "their statistics"  # made by somebody else: only the utterances can be compared
    shutil.copytree(stats, theirs, ignore=shutil.ignore_patterns(".*"))
    other = ("--asr_stats_dir", str(theirs))
    foreign = workspace.run(*workspace.speeds, *stages, *other, status=1).stderr
    assert "train/speech_shape names other utterances than" in foreign and foreign.count("\n") == 1
    workspace.run(*workspace.speeds, "--stage", "4", "--stop_stage", "5")
    said.append(workspace.run(*workspace.speeds, *stages, "--asr_args", "--frontend_conf n_fft=400", status=1).stderr)
    for line in said:
        assert line.endswith("than those of now; run stage 10 first\n") and line.count("\n") == 1
    (theirs / "valid" / "text_shape.char").unlink()
    foreign = workspace.run(*workspace.speeds, *stages, *other, status=1).stderr
    assert foreign.endswith("text_shape.char is missing; run stage 10 first\n")
    shutil.rmtree(theirs)
    assert not (workspace.folder / "exp/asr_stale").exists()
    assert "training: done, skipped" in workspace.run(*workspace.speeds, "--stage", "11", "--stop_stage", "11").stdout


def test_every_stage_left_its_files(whole: Workspace) -> None:
    for name in (
        "data/train/wav.scp",
        "data/train_sp/wav.scp",
        "dump/raw/train_sp/wav.scp",
        "dump/raw/dev/text",
        "data/token_list/char/tokens.txt",
        "exp/asr_stats_raw_char_sp/train/feats_stats.npz",
        MODEL,
        f"{EXPERIMENT}/train_time.yaml",
        *(f"{EXPERIMENT}/decode_every_exit/{name}/evidence.tsv" for name in ("dev", "test")),
        *(f"{EXPERIMENT}/decode_learned_wer_loss1/{name}/utt2exit" for name in ("dev", "test")),
        f"{EXPERIMENT}/policies/decode_learned_wer_loss1.yaml",
        f"{EXPERIMENT}/RESULTS.md",
        f"{EXPERIMENT}/exits.csv",
        f"{EXPERIMENT}/curve.png",
        f"{EXPERIMENT}/report.html",
        f"{EXPERIMENT}/package/README.md",
        f"{EXPERIMENT}/package/model.safetensors",
    ):
        assert (whole.folder / name).stat().st_size > 0, name
    assert not list(whole.folder.rglob("*.tmp"))


def test_a_second_run_changes_nothing_however_it_is_written(whole: Workspace) -> None:
    before = whole.state()
    config = whole.folder / "train_tiny.yaml"
    config.write_text("# a remark\n" + yaml.safe_dump({**TRAINING, "log_interval": 3}, sort_keys=False), encoding="utf-8")
    options = ("--datadir", f"{whole.folder}/data/", "--command", "another", "--asr_args", "--num_workers 0", "--nj", "1")
    result = whole.run(*whole.speeds, *options)
    assert whole.state() == before
    assert "stage 11: training: done, skipped" in result.stdout and "stage 14: pack: done, skipped" in result.stdout


def test_the_command_in_the_results_can_be_run(whole: Workspace) -> None:
    text = (whole.folder / EXPERIMENT / "RESULTS.md").read_text(encoding="utf-8")
    assert "cd egs/mini/asr1 && ./run.sh --datadir" in text
    assert "--speed_perturb_factors '0.9 1.0'" in text


def test_a_changed_option_redoes_its_stage_only(whole: Workspace, tmp_path: Path) -> None:
    before = whole.state()
    options = ("--stage", "12", "--stop_stage", "13", "--note", "second look", "--results_dir", str(tmp_path))
    whole.run(*whole.speeds, *options)
    changed = {name for name, value in whole.state().items() if before.get(name) != value}
    assert f"{EXPERIMENT}/RESULTS.md" in changed
    assert {Path(name).name for name in changed} <= {
        *("RESULTS.md", "exits.csv", "curve.png", "report.html", "score.log", ".stage13.done", "log"),
        Path(EXPERIMENT).name,
    }
    assert {path.name for path in tmp_path.iterdir()} == {"RESULTS.md", "exits.csv", "curve.png"}
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8").count("second look") == 1  # not in the command, too


def test_the_package_holds_what_was_calibrated(whole: Workspace) -> None:
    calibrated, packed = (
        {path.name for path in (whole.folder / EXPERIMENT / folder).glob("decode_*.yaml")} for folder in ("policies", "package")
    )
    assert len(calibrated) > 4
    assert packed == calibrated
    package = whole.folder / EXPERIMENT / "package"
    assert yaml.safe_load((package / "package.yaml").read_text(encoding="utf-8"))["default"] == "learned_wer_loss1"
    assert "|`learned_wer_loss1` (default)|learned threshold=" in (package / "README.md").read_text(encoding="utf-8")


def test_with_a_language_model_everything_is_of_the_beam_with_it(whole: Workspace) -> None:
    pytest.importorskip("kaldingram")
    copy = whole.folder / "exp/with_lm"
    shutil.copytree(whole.folder / EXPERIMENT, copy)
    options = ("--use_lm", "true", "--asr_exp", str(copy), "--beam_size", "3", "--calibrate_policies", "entropy",
               "--calibrate_targets", "wer_loss=5", "--online_policies", "entropy")  # fmt: skip
    assert "run stage 9 first" in whole.run(*whole.speeds, *options, "--stage", "12", status=1).stderr
    said = whole.run(*whole.speeds, *options, "--stage", "9", "--stop_stage", "9").stdout
    # Of the text as it was said: other speeds count no sentence twice.
    assert f"5-gram model of {len((whole.folder / 'data/train/text').read_text().splitlines())} sentences" in said
    whole.run(*whole.speeds, *options, "--stage", "12", "--stop_stage", "14")
    page = (copy / "RESULTS.md").read_text(encoding="utf-8")
    assert "- search: `beam 3, language model lm.arpa (weight " in page and "**NO**" not in page
    arpa = (whole.folder / "exp/lm_char/lm.arpa").read_bytes()
    assert (copy / "lm/lm.arpa").read_bytes() == (copy / "package/lm.arpa").read_bytes() == arpa
    packed = yaml.safe_load((copy / "package/decode_entropy_wer_loss5.yaml").read_text(encoding="utf-8"))
    assert packed["search"]["lm"] == "lm.arpa"
    before = whole.state()
    again = whole.run(*whole.speeds, *options, "--stage", "9", "--stop_stage", "14").stdout
    assert whole.state() == before and again.count("done, skipped") == 6
    shutil.rmtree(copy)
    shutil.rmtree(whole.folder / "exp/lm_char")


@pytest.mark.parametrize("stage", ["13", "14"])
def test_nothing_is_said_of_a_model_by_the_decodings_of_another(whole: Workspace, stage: str) -> None:
    other = whole.folder / EXPERIMENT / "other.pth"
    other.write_bytes(b"another model")
    before = whole.state()
    options = ("--inference_asr_model", "other.pth", "--stage", stage, "--stop_stage", stage)
    result = whole.run(*whole.speeds, *options, status=1)
    assert "was decoded with another model than" in result.stderr and "run stage 12 first" in result.stderr
    assert whole.state() == before
    other.unlink()


def test_stored_features_and_more_epochs(workspace: Workspace) -> None:
    """feats_type extracted, on the same data, without global statistics; then the training goes on."""
    options = ("--feats_type", "extracted", "--stage", "3", "--stop_stage", "11", "--test_sets", "dev")
    workspace.run(*options, "--asr_args", "--max_epoch 1")
    said = workspace.run(*options, "--asr_args", "--max_epoch 2 --num_workers 0").stdout
    assert "goes on where it stopped" in said and "epoch 1:" not in said and "epoch 2:" in said
    assert not list((workspace.folder / "exp").glob("*.old*"))


def test_attention_decoders_go_through_all_stages(workspace: Workspace, tmp_path: Path) -> None:
    """The joint search is calibrated and packed with policies that read the decoder; online is the replay; an exit is a stock model."""
    from espnet2.bin.asr_inference import Speech2Text

    from espnet_ee.cli.main import main
    from espnet_ee.policy.table import read_table
    from espnet_ee.score.points import read_exits

    config, exp = tmp_path / "train_aed.yaml", workspace.folder / "exp/asr_train_aed_raw_char_sp"
    config.write_text(yaml.safe_dump({**TRAINING, **tiny.attention()}), encoding="utf-8")
    names = "decoder decoder_posterior"
    options = ("--asr_config", str(config), "--search", "kind=attention beam=2", "--calibrate_policies", names,
               "--calibrate_targets", "wer_loss=5", "--online_policies", names)  # fmt: skip
    workspace.run(*workspace.speeds, *options, "--stage", "5", "--stop_stage", "14")
    page = (exp / "RESULTS.md").read_text(encoding="utf-8")
    assert "attention and CTC (weight 0.3), beam 2" in page and "**NO**" not in page
    utterances = read_table(exp / "decode_every_exit/dev/evidence.tsv").utterances
    first = [utterance.rows[0] for utterance in utterances.values()]
    spent = sum(row.encoder_macs + row.head_macs + row.decoder_macs for row in first)
    points = {
        point.name: point for point in read_exits(exp / "exits.csv") if point.set == "dev" and point.kind in ("fixed", "online")
    }
    assert all(row.decoder_macs > row.head_macs for row in first)
    assert points["exit 1"].macs_per_second == pytest.approx(
        spent / sum(one.audio_seconds for one in utterances.values()), rel=1e-4
    )
    for policy in names.split():
        packed = yaml.safe_load((exp / f"package/decode_{policy}_wer_loss5.yaml").read_text(encoding="utf-8"))
        assert (packed["policy"], packed["search"]["kind"]) == (policy, "attention") and f"{policy}_wer_loss5" in points
    out = tmp_path / "exit2"
    main(["export", "--format", "stock", "--exit_layer", "2", "--model", str(exp), "--out", str(out)])
    stock = Speech2Text(out / "config.yaml", out / "model.pth", beam_size=2, ctc_weight=0.3)
    audio = dict(line.split(maxsplit=1) for line in (workspace.folder / "dump/raw/dev/wav.scp").read_text().splitlines())
    texts = [
        (stock(soundfile.read(workspace.folder / audio[name])[0])[0][0], one.rows[-1].hypothesis)
        for name, one in utterances.items()
    ]
    assert all(theirs.split() == ours.split() for theirs, ours in texts) and any(ours for _, ours in texts)
