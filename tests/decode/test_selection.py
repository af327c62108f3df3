"""Stage 12 in one process: evidence, calibration, calibrated policies online; done once, and again when anything changed."""

from __future__ import annotations

import errno
import fcntl
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

from espnet_ee.data.inputs import read_inputs
from espnet_ee.decode.alignment import Aligner
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
    "text",
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


def late(
    options: DecodeOptions, session: TorchSession, layer: int, seconds: tuple[float, float], folder: Path
) -> DecodeOptions:
    """The development set, which knows when its words are said: so much earlier than an exit says them."""
    data, aligner = options.data[0], Aligner(session, layer)
    shutil.copytree(data, folder / "dev")
    with open(folder / "dev/words.ctm", "w") as stream:
        for item in read_inputs(data, 16000):
            for word in aligner(item.load(), "A B") if item.seconds > 0.2 else ():
                start, end = max(0.0, word.start - seconds[0]), max(0.0, word.end - seconds[1])
                stream.write(f"{item.utt_id} 1 {start:.4f} {max(0, end - start):.4f} {word.text}\n")
    return replace(options, data=(folder / "dev", *options.data[1:]))


@pytest.fixture
def timed(session: TorchSession, monkeypatch: pytest.MonkeyPatch) -> TorchSession:
    """A session that knows how long its frames are."""
    monkeypatch.setattr(session, "sample_rate", 16000)
    monkeypatch.setattr(session, "frame_seconds", session._frame_seconds(16000))
    monkeypatch.setattr("espnet_ee.decode.word_times.LEAST_WORDS", 20)
    return session


@pytest.mark.parametrize("layer", [1, 4])
def test_a_set_that_knows_when_words_are_said_sets_their_times(options, load, timed, tmp_path, layer: int) -> None:
    decode_sets(options, load)
    before = contents(options.out)
    given = late(options, timed, layer, (0.02, 0.01), tmp_path)
    decode_sets(given, load)
    assert load.count == 2
    folder = options.out / "policies"
    for path in folder.glob("decode_*.yaml"):
        config = DecodingConfig.read(path)
        assert config.word_exit == (1 if layer == 1 else None)
        assert config.word_shift == pytest.approx((-0.02, -0.01), abs=1e-3)
    facts = yaml.safe_load((options.out / "word_times.yaml").read_text())
    rows = {row[0]: row[1:] for row in facts["exit_words_late_start_end_within_start_end"]}
    assert set(rows) == {1, 4} and rows[layer][3:] == [100, 100] and sum(rows[5 - layer][3:]) < 200
    # Nothing else is another: no text, no stop, no count, and no decoding is made again.
    after = contents(options.out)
    assert {name: text for name, text in after.items() if "policies" not in name and name != "word_times.yaml"} == {
        name: text for name, text in before.items() if "policies" not in name
    }
    decode_sets(given, load)  # measured once
    assert load.count == 2
    shutil.copytree(options.data[0], tmp_path / "silent/dev")
    decode_sets(replace(options, data=(tmp_path / "silent/dev", *options.data[1:])), load)
    assert load.count == 2 and {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name.removeprefix("policies/"): text for name, text in before.items() if "policies" in name
    }


@pytest.mark.parametrize("fault", ["names", "clock", "frames"])
def test_known_times_that_do_not_fit_are_a_warning_and_broken_ones_are_said_first(
    options, load, timed, tmp_path, monkeypatch, capsys, fault: str
) -> None:
    given = late(options, timed, 1, (0.0, 0.0), tmp_path)
    table = tmp_path / "dev/words.ctm"
    if fault == "names":
        table.write_text(table.read_text().replace("dev-", "other-"))
    elif fault == "clock":
        table.write_text(
            "".join(f"dev-{number:02d} 1 {7 + n} 0.1 {word}\n" for number in range(12) for n, word in enumerate("AB"))
        )
    else:
        monkeypatch.setattr(timed, "frame_seconds", None)
    decode_sets(given, load)
    said = {"names": "0 words can be compared", "clock": "a second or more", "frames": "how long its frames are"}[fault]
    assert f"warning: {table}: words' times stay as they are: " in (err := capsys.readouterr().err) and said in err
    assert all(DecodingConfig.read(path).word_shift == (0, 0) for path in (options.out / "policies").glob("decode_*.yaml"))
    table.write_text("dev-00 1 0.1\n")
    with pytest.raises(UserError, match=r"words\.ctm:1"):
        decode_sets(replace(given, out=tmp_path / "new"), load)
    assert load.count == 1


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


def test_a_calibration_that_cannot_be_is_none() -> None:
    with pytest.raises(UsageError, match="wer=1"):
        Calibration("dev", targets=("wer=1",))
    with pytest.raises(UsageError, match="learned"):
        Calibration("dev", ("entropy",), online=("learned",))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": ()}, UsageError, "data"),
        ({"nbest": 1}, UsageError, "nbest"),
        ({"nbest": 4, "calibration": None}, UsageError, "nbest"),
        ({"calibration": Calibration("train")}, UsageError, r"train.*dev, test"),
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


class Torn(Exception):
    """The machine goes away."""


def tear_after(count: int, session: TorchSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a session compute so many batches."""
    start, left = session.start, [count]

    def limited(batch: list[np.ndarray]) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise Torn
        return start(batch)

    monkeypatch.setattr(session, "start", limited)


def contents(folder: Path) -> dict[str, bytes]:
    """What a decoding holds but for the clock's."""
    skipped = ("decode.yaml", "timing.tsv")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in skipped
    }


@pytest.mark.parametrize(("every_exit", "nbest", "batch_size"), [(True, 2, 1), (False, 0, 1), (True, 0, 3)])
def test_a_decoding_that_was_cut_off_goes_on_inside_its_set(
    options, load, session, monkeypatch, capsys, every_exit: bool, nbest: int, batch_size: int
) -> None:
    one = {} if every_exit else {"a": DecodingConfig(EntropyPolicy(0.25))}
    options = replace(
        options, calibration=None, every_exit=every_exit, nbest=nbest, batch_size=batch_size, configs=one, data=options.data[:1]
    )
    decode_sets(replace(options, out=options.out.with_name("undisturbed")), load)
    for torn in range(3):  # more than once
        with monkeypatch.context() as patch, pytest.raises(Torn):
            tear_after(1, session, patch)
            decode_sets(options, load)
        (journal,) = options.out.rglob(".dev.journal")
        if torn == 1:  # cut off while it wrote
            journal.write_bytes(journal.read_bytes()[:-9])
    capsys.readouterr()
    started = []
    with monkeypatch.context() as patch:
        start = session.start
        patch.setattr(session, "start", lambda batch: started.extend(batch) or start(batch))
        decode_sets(options, load)
    done = 2 * batch_size
    assert len(started) == 12 - done and f"goes on after {done} of 12" in capsys.readouterr().err
    assert contents(options.out) == contents(options.out.with_name("undisturbed"))
    (folder,) = options.out.glob("*/dev")
    facts = yaml.safe_load((folder / "decode.yaml").read_text())
    assert facts["utterances"] == 12 and facts["decode_seconds"] > 0


def test_the_journal_of_other_settings_is_begun_anew_and_one_in_use_is_refused(
    options, load, session, monkeypatch, capsys
) -> None:
    options = replace(options, calibration=None, every_exit=True, data=options.data[:1])
    with monkeypatch.context() as patch, pytest.raises(Torn):
        tear_after(2, session, patch)
        decode_sets(options, load)
    with open(options.out / "decode_every_exit/.dev.journal", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="decode_every_exit/dev: another process"):
            decode_sets(options, load)
    decode_sets(replace(options, batch_size=5), load)
    assert "goes on after" not in capsys.readouterr().err


def test_a_file_system_without_locks_is_decoded_into(options, load, monkeypatch, capsys) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    options = replace(options, calibration=None, every_exit=True, data=options.data[:1])
    decode_sets(options, load)
    said = capsys.readouterr().err
    assert "decode_every_exit/dev: cannot be locked (No locks available): start no second process there\n" in said
    assert (options.out / "decode_every_exit/dev/decode.yaml").exists()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_utterances_that_cannot_be_decoded_are_listed_and_cost_no_other_its_text(
    options, load, session, monkeypatch, tmp_path, capsys, batch_size: int
) -> None:
    """No number in the sound, a damaged file, more than the memory takes: the others are decoded as ever."""
    options = replace(options, calibration=None, every_exit=True, batch_size=batch_size, data=options.data[:1])
    decode_sets(replace(options, out=tmp_path / "good"), load)
    good = read_scp(options.data[0] / "wav.scp")
    soundfile.write(tmp_path / "nan.wav", np.full(4000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "long.wav", np.zeros(50000), 16000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    (tmp_path / "garbage.wav").write_bytes(b"RIFF....")
    bad = {f"bad-{kind}": str(tmp_path / f"{kind}.wav") for kind in ("nan", "garbage", "long", "empty")}
    write_scp(tmp_path / "dev/wav.scp", {**good, **bad})
    advance = session.encoder.advance

    def small(state: object) -> object:
        if state.hidden.size(0) * state.hidden.size(1) > 100 or state.hidden.size(1) > 60:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory")
        return advance(state)

    monkeypatch.setattr(session.encoder, "advance", small)
    decode_sets(replace(options, data=(tmp_path / "dev",)), load)
    folder = options.out / "decode_every_exit/dev"
    failed = read_scp(folder / "failed")
    assert sorted(failed) == sorted(bad)
    # ESPnet's stage 13 pairs the lines of this file and of the references by their number.
    texts = {**dict.fromkeys(bad, ""), **read_scp(folder / "1best_recog/text", allow_empty=True)}
    assert read_scp(folder / "text", allow_empty=True) == texts and len(texts) == 16
    for utt, words in (("nan", "not finite"), ("garbage", "garbage.wav"), ("long", "memory"), ("empty", "no samples")):
        assert words in failed[f"bad-{utt}"]
    said = capsys.readouterr().err
    assert f"warning: {folder}: 4 of 16 utterances could not be decoded, see {folder / 'failed'}" in said
    assert yaml.safe_load((folder / "decode.yaml").read_text())["failed"] == 4
    found = read_table(folder / "evidence.tsv")
    kept = read_table(tmp_path / "good/decode_every_exit/dev/evidence.tsv")
    assert {utt: [row.hypothesis for row in found.utterances[utt].rows] for utt in found.utterances} == {
        utt: [row.hypothesis for row in kept.utterances[utt].rows] for utt in kept.utterances
    }


def test_where_no_utterance_can_be_decoded_it_is_not_the_utterances(options, load, session, monkeypatch, tmp_path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.full(4000, np.nan), 16000, subtype="FLOAT")
    write_scp(tmp_path / "set/wav.scp", {f"u{number:02d}": str(tmp_path / "nan.wav") for number in range(30)})
    options = replace(options, data=(tmp_path / "set",), calibration=None, every_exit=True)
    with pytest.raises(UserError, match=r"set: u00: .*not finite"):
        decode_sets(options, load)
    assert not (options.out / "decode_every_exit/set").exists()


def test_a_page_says_which_utterances_it_lacks(options, load, corpus, tmp_path, capsys) -> None:
    """Also those that only an online run lacks, so that all rows of the table are of the same utterances."""
    data = tmp_path / "data"
    for name in ("dev", "test"):
        shutil.copytree(corpus / name, data / name)
    soundfile.write(tmp_path / "nan.wav", np.full(4000, np.nan), 16000, subtype="FLOAT")
    for file, value in (("wav.scp", tmp_path / "nan.wav"), ("text", "A")):
        for name in ("dev", "test"):
            with open(data / name / file, "a") as stream:
                stream.write(f"zz-{name} {value}\n")
    options = replace(options, data=(data / "dev", data / "test"))
    decode_sets(options, load)
    said = capsys.readouterr().err
    # Of dev: every exit, the calibration, and two policies online.
    assert said.count("1 of 13 utterances could not be decoded") == 4
    online = options.out / "decode_entropy_mean_layer2/test"
    lost = "test-00"
    for file in (
        "utt2exit",
        "utt2macs",
        "utt2dur",
        *(f"1best_recog/{file}" for file in ("text", "token", "token_int", "score")),
    ):
        table = read_scp(online / file, allow_empty=True)
        write_scp(online / file, {key: value for key, value in table.items() if key != lost})
    write_scp(online / "failed", {**read_scp(online / "failed"), lost: "does not fit into memory"})
    page = score_experiment(ScoreOptions(options.out, data, "dev", ["test"]))
    test, dev = page.sets
    assert (test.utterances, sorted(test.failed)) == (3, [lost, "zz-test"])
    assert (dev.utterances, sorted(dev.failed)) == (12, ["zz-dev"])
    assert {point.words.sentences for point in test.points} == {3}
    text = (options.out / "RESULTS.md").read_text()
    assert "## test (3 utterances; **2 more could not be decoded and are in no number**" in text
    assert f"- test/{lost}: does not fit into memory" in text


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


def test_a_target_above_the_last_exit_is_left_out_after_hours_of_decoding(options, load, capsys) -> None:
    targets = ("mean_layer=2", "mean_layer=12")
    decode_sets(replace(options, calibration=replace(options.calibration, targets=targets)), load)
    assert {path.name for path in (options.out / "policies").glob("decode_entropy*")} == {"decode_entropy_mean_layer2.yaml"}
    assert "warning: target mean_layer=12 is left out: the last exit is 4" in capsys.readouterr().err
