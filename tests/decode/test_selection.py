"""Stage 12 in one process: evidence, calibration, calibrated policies online; done once, and again when anything changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_ee.decode.selection import Calibration, DecodeOptions, LoadedModel, decode_sets
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.errors import UsageError, UserError
from espnet_ee.kaldi import read_scp, write_scp
from espnet_ee.policy.base import choose_exit
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.table import macs_of_stop, read_table
from espnet_ee.score.experiment import ScoreOptions, score_experiment
from espnet_ee.score.page import shown_points
from tests import tiny

FILES = {
    "1best_recog/score",
    "1best_recog/text",
    "1best_recog/token",
    "1best_recog/token_int",
    "decode.yaml",
    "utt2dur",
    "utt2exit",
    "utt2macs",
}


@pytest.fixture(scope="module")
def session() -> TorchSession:
    return TorchSession(tiny.model(seed=2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of utterances of mixed length and loudness."""
    folder, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(1)
    for name, count in (("dev", 12), ("test", 4)):
        wavs = {}
        for number in range(count):
            path = folder / f"{name}{number}.wav"
            soundfile.write(path, random.standard_normal(random.integers(400, 30000)) * random.uniform(0.01, 0.3), 16000)
            wavs[f"{name}-{number:02d}"] = str(path)
        write_scp(folder / name / "wav.scp", wavs)
        write_scp(folder / name / "text", dict.fromkeys(wavs, "A B"))
    return folder


@pytest.fixture
def options(corpus: Path, tmp_path: Path) -> DecodeOptions:
    (tmp_path / "model.pth").write_bytes(b"parameters")
    calibration = Calibration("dev", ("entropy", "patience"), ("mean_layer=2", "mean_layer=3"), online=("entropy",))
    return DecodeOptions(
        tmp_path / "exp", (corpus / "dev", corpus / "test"), (tmp_path / "model.pth",), calibration=calibration
    )


@pytest.fixture
def load(session: TorchSession) -> Iterator[Callable[[], LoadedModel]]:
    """Loads the model; ``load.count`` says how often."""
    threads = torch.get_num_threads()

    def load() -> LoadedModel:
        load.count += 1
        return LoadedModel(session, 16000, {"parameters": 3})

    load.count = 0
    yield load
    torch.set_num_threads(threads)


def state(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_one_process_makes_evidence_policies_and_online_runs_that_are_their_replay(options, load) -> None:
    decode_sets(options, load)
    assert load.count == 1
    out = options.out
    assert sorted(path.name for path in (out / "policies").glob("decode_*.yaml")) == [
        "decode_entropy_mean_layer2.yaml",
        "decode_entropy_mean_layer3.yaml",
        "decode_patience_mean_layer2.yaml",
        "decode_patience_mean_layer3.yaml",
    ]
    assert {path.name for path in out.iterdir()} == {
        "policies",
        "decode_every_exit",
        "decode_entropy_mean_layer2",
        "decode_entropy_mean_layer3",
    }
    exits = set()
    for name in ("dev", "test"):
        table = read_table(out / "decode_every_exit" / name / "evidence.tsv")
        for tag in ("decode_entropy_mean_layer2", "decode_entropy_mean_layer3"):
            config = DecodingConfig.read(out / "policies" / f"{tag}.yaml")
            folder = out / tag / name
            assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == FILES
            layers, macs, texts = (
                read_scp(folder / file, allow_empty=True) for file in ("utt2exit", "utt2macs", "1best_recog/text")
            )
            for utt, utterance in table.utterances.items():
                index = choose_exit(config.policy, utterance.evidence)
                row = utterance.rows[index]
                assert (int(layers[utt]), texts[utt]) == (row.evidence.layer, row.hypothesis)
                assert int(macs[utt]) == macs_of_stop(utterance.rows, index, True)
                exits.add(index)
    assert len(exits) > 1


def test_what_is_done_stays_and_the_model_is_not_loaded(options, load, tmp_path) -> None:
    decode_sets(options, load)
    before = {name: time for name, time in state(options.out).items() if not name.startswith("policies")}
    # Elsewhere, under other names of the files: the content counts.
    moved = tmp_path / "elsewhere"
    for data in options.data:
        wavs = {utt: str(moved / f"{utt}.sound.wav") for utt in read_scp(data / "wav.scp")}
        write_scp(moved / data.name / "wav.scp", wavs)
        shutil.copy(data / "text", moved / data.name / "text")
        for utt, path in read_scp(data / "wav.scp").items():
            shutil.copy(path, wavs[utt])
    again = replace(options, data=tuple(moved / data.name for data in options.data))
    decode_sets(again, load)
    assert load.count == 1
    assert {name: time for name, time in state(options.out).items() if not name.startswith("policies")} == before


@pytest.mark.parametrize("change", ["model", "audio", "batch_size", "nbest", "device"])
def test_what_changed_is_done_again(options, load, change: str, tmp_path, monkeypatch) -> None:
    options = replace(options, calibration=None, every_exit=True, data=options.data[1:])
    if change == "nbest":
        pytest.importorskip("flashlight.lib.text")
    decode_sets(options, load)
    before = state(options.out)
    if change == "model":
        options.model_files[0].write_bytes(b"others")
    elif change == "audio":
        wavs = read_scp(options.data[0] / "wav.scp")
        changed = tmp_path / "test"
        first = sorted(wavs)[0]
        write_scp(changed / "wav.scp", {**wavs, first: wavs[sorted(wavs)[1]]})
        options = replace(options, data=(changed,))
    else:
        options = replace(options, **{change: {"batch_size": 3, "nbest": 4, "device": "cpu:0"}[change]})
    decode_sets(options, load)
    assert load.count == 2
    assert not set(state(options.out).values()) & set(before.values())
    decode_sets(options, load)
    assert load.count == 2


def test_a_batch_gives_the_same_files(options, load) -> None:
    plain = replace(options, calibration=None, configs={"decode_entropy": DecodingConfig(EntropyPolicy(0.2))})
    decode_sets(plain, load)
    decode_sets(replace(plain, out=options.out.with_name("batched"), batch_size=5), load)
    for name in ("dev", "test"):
        for file in sorted(FILES - {"decode.yaml", "1best_recog/score"}):
            one, other = (folder / "decode_entropy" / name / file for folder in (options.out, options.out.with_name("batched")))
            assert one.read_bytes() == other.read_bytes()
    facts = yaml.safe_load((options.out / "decode_entropy/dev/decode.yaml").read_text(encoding="utf-8"))
    assert (facts["policy"], facts["policy_conf"], facts["parameters"]) == ("entropy", {"threshold": 0.2}, 3)
    assert facts["utterances"] == 12


def test_runs_of_an_earlier_calibration_go(options, load) -> None:
    decode_sets(options, load)
    (options.out / "decode_mine").mkdir()
    decode_sets(replace(options, calibration=replace(options.calibration, targets=("mean_layer=2",))), load)
    assert (options.out / "decode_entropy_mean_layer2/dev/text").parent.is_dir()
    assert not (options.out / "decode_entropy_mean_layer3/dev").exists()
    assert (options.out / "decode_mine").is_dir()


def test_an_output_folder_is_checked_before_anything_is_decoded(options, load) -> None:
    other = options.out / "decode_every_exit/test"
    other.mkdir(parents=True)
    (other / "wav.scp").write_text("u a.wav\n", encoding="utf-8")
    with pytest.raises(UserError, match="decode_every_exit/test"):
        decode_sets(options, load)
    assert load.count == 0
    assert os.listdir(other) == ["wav.scp"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": ()}, UsageError, "data"),
        ({"nbest": 1}, UsageError, "nbest"),
        ({"nbest": 4, "calibration": None}, UsageError, "nbest"),
        ({"calibration": Calibration("train")}, UsageError, r"train.*dev, test"),
        ({"calibration": Calibration("dev", targets=("wer=1",))}, UsageError, "wer=1"),
        ({"calibration": Calibration("dev", ("entropy",), online=("learned",))}, UsageError, "learned"),
        ({"configs": {"decode_every_exit": DecodingConfig()}}, UsageError, "decode_every_exit"),
        ({"configs": {"a": DecodingConfig(FixedExitPolicy(3))}, "calibration": None}, UserError, "no exit after layer 3"),
        ({"model_files": (Path("nowhere.pth"),)}, UserError, "nowhere.pth"),
    ],
)
def test_mistakes_are_found_first(options, load, changes: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        decode_sets(replace(options, **changes), load)
    assert not [path for path in options.out.rglob("*") if path.is_file()]


def test_a_missing_sound_and_a_set_without_text_are_named(options, load, tmp_path) -> None:
    write_scp(tmp_path / "bare/wav.scp", {"u": str(tmp_path / "nowhere.wav")})
    with pytest.raises(UserError, match=r"nowhere\.wav"):
        decode_sets(replace(options, data=(tmp_path / "bare",), calibration=None, every_exit=True), load)
    with pytest.raises(UserError, match="bare/text"):
        decode_sets(replace(options, data=(tmp_path / "bare",), calibration=Calibration("bare")), load)
    assert load.count == 0


def test_an_utterance_that_cannot_be_recognised_is_named(options, load, tmp_path) -> None:
    soundfile.write(tmp_path / "loud.wav", np.full(4000, np.nan), 16000, subtype="FLOAT")
    good = read_scp(options.data[0] / "wav.scp")
    write_scp(tmp_path / "set/wav.scp", {**good, "dev-03x": str(tmp_path / "loud.wav")})
    with pytest.raises(UserError, match=r"loud\.wav|dev-03x"):
        decode_sets(replace(options, data=(tmp_path / "set",), calibration=None, every_exit=True, batch_size=4), load)


def test_what_stage_12_leaves_is_what_scoring_reads(
    options: DecodeOptions, load: Callable[[], LoadedModel], corpus: Path
) -> None:
    """Every calibrated policy has its row; what ran online equals its replay on every set; nothing is aligned twice."""
    decode_sets(options, load)
    counts = options.out / "decode_every_exit/dev/errors.tsv"
    before = counts.stat().st_mtime_ns
    page = score_experiment(ScoreOptions(options.out, corpus, "dev", ["test"]))
    assert counts.stat().st_mtime_ns == before
    for result in page.sets:
        rows = {point.name: point for point in shown_points(result)}
        assert all(rows[f"entropy_mean_layer{depth}"].equals_replay for depth in (2, 3))
        assert all(rows[f"patience_mean_layer{depth}"].kind == "calibrated" for depth in (2, 3))
        assert all(rows[f"entropy_mean_layer{depth}"].target for depth in (2, 3))
