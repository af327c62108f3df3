"""Stored features are what ESPnet's DefaultFrontend computes, and the files do not depend on the processes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from espnet_ee.data import features
from espnet_ee.data.audio import read_audio
from espnet_ee.data.datadir import validate_data_dir
from espnet_ee.data.features import extract_features, frame_shift, read_frontend
from espnet_ee.data.inputs import read_inputs
from espnet_ee.data.kaldi_ark import load_scp, write_ark
from espnet_ee.data.length_filter import filter_lengths
from espnet_ee.errors import UsageError, UserError

torch = pytest.importorskip("torch")
pytest.importorskip("espnet2")


@pytest.fixture
def conf_file(tmp_path: Path) -> Path:
    path = tmp_path / "frontend_conf.yaml"
    path.write_text("fs: 16k\nhop_length: 160\n")
    return path


def test_features_are_default_frontends(data_dir: Path, tmp_path: Path, conf_file: Path) -> None:
    from espnet2.asr.frontend.default import DefaultFrontend

    out = tmp_path / "dump"
    assert extract_features(data_dir, out, conf_file).utterances == 3
    data = validate_data_dir(out, "extracted")
    assert data.notes["feats_dim"] == "80\n"
    assert data.tables["feats.scp"]["a-1"].startswith(f"{out}/data/feats.1.ark:")
    stored = load_scp(out / "feats.scp")
    frontend = DefaultFrontend(fs="16k", hop_length=160).eval()
    for utt_id in data.utt_ids:
        samples = read_audio(tmp_path / f"{utt_id}.wav")[0]
        with torch.no_grad():
            expected = frontend(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))[0][0].numpy()
        assert stored[utt_id].dtype == np.float32
        np.testing.assert_array_equal(stored[utt_id], expected)
        assert data.tables["utt2num_frames"][utt_id] == str(len(expected)) == str(len(samples) // 160 + 1)


@pytest.fixture
def kaldi_file(tmp_path: Path) -> Path:
    path = tmp_path / "kaldi.yaml"
    path.write_text("frontend: kaldi_fbank\nfrontend_conf: {fs: 16k, n_mels: 40}\n")
    return path


def test_features_are_kaldis_where_the_frontend_is(data_dir: Path, tmp_path: Path, kaldi_file: Path) -> None:
    """Those that the frontend of a model on audio computes, bit for bit."""
    from espnet_ee.frontend.kaldi_fbank import KaldiFbank

    out = tmp_path / "dump"
    assert extract_features(data_dir, out, kaldi_file).utterances == 3
    data = validate_data_dir(out, "extracted")
    assert data.notes["feats_dim"] == "40\n"
    assert yaml.safe_load(data.notes["frontend.yaml"]) == {
        "frontend": "kaldi_fbank",
        "frontend_conf": {"fs": 16000, "n_mels": 40},
    }
    assert read_frontend(out / "frontend.yaml") == yaml.safe_load(data.notes["frontend.yaml"])
    assert frame_shift(out) == 0.01
    stored = load_scp(out / "feats.scp")
    for utt_id in data.utt_ids:
        samples = read_audio(tmp_path / f"{utt_id}.wav")[0]
        features, frames = KaldiFbank(n_mels=40)(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        np.testing.assert_array_equal(stored[utt_id], features[0].numpy())
        assert data.tables["utt2num_frames"][utt_id] == str(int(frames)) == str((len(samples) + 80) // 160)


@pytest.mark.parametrize("count", [79, 80])
def test_an_utterance_without_a_frame_of_kaldis_is_named(count: int, data_dir: Path, tmp_path: Path, kaldi_file: Path) -> None:
    soundfile.write(tmp_path / "a-2.wav", np.ones(count) * 0.1, 16000)
    made = extract_features(data_dir, tmp_path / "dump", kaldi_file, max_skipped=50)
    assert made.utterances == (3 if count == 80 else 2)
    if count == 79:
        assert "a-2.wav: 79 samples are too short for a frame" in (tmp_path / "dump" / "skipped").read_text()


def test_frontend_is_written_to_build_it_again(data_dir: Path, tmp_path: Path, conf_file: Path) -> None:
    extract_features(data_dir, tmp_path / "dump", conf_file)
    written = yaml.safe_load((tmp_path / "dump" / "frontend.yaml").read_text())
    assert written["frontend"] == "default"
    assert written["frontend_conf"]["fs"] == 16000 and written["frontend_conf"]["hop_length"] == 160
    assert read_frontend(tmp_path / "dump" / "frontend.yaml") == written


@pytest.mark.process
def test_files_are_the_same_for_any_number_of_processes(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    monkeypatch.setattr(features, "UTTERANCES_PER_ARK", 1)
    extract_features(data_dir, tmp_path / "dump", nj=1)
    first = tree_bytes(tmp_path / "dump")
    assert {name for name in first if name.endswith(".ark")} == {f"data/feats.{n}.ark" for n in (1, 2, 3)}
    extract_features(data_dir, tmp_path / "dump", nj=2)
    assert tree_bytes(tmp_path / "dump") == first


def test_compression_is_smaller_and_near(data_dir: Path, tmp_path: Path) -> None:
    extract_features(data_dir, tmp_path / "exact")
    extract_features(data_dir, tmp_path / "small", compress=True)
    exact, small = (load_scp(tmp_path / name / "feats.scp")["a-1"] for name in ("exact", "small"))
    sizes = [(tmp_path / name / "data" / "feats.1.ark").stat().st_size for name in ("exact", "small")]
    assert sizes[1] < 0.3 * sizes[0]
    assert np.abs(exact - small).max() < 0.3


@pytest.mark.parametrize(
    ("yaml_text", "message"),
    [
        ("n_mel: 80\n", "has no option 'n_mel'"),
        ("- 1\n", "must be 'key: value' lines"),
        ("{", "not plain YAML"),
        ("frontend: s3prl\n", "'s3prl' cannot be extracted; only default and kaldi_fbank can"),
        ("frontend: kaldi_fbank\nfrontend_conf: {n_fft: 512}\n", "KaldiFbank has no option 'n_fft'; it has fs n_mels"),
        ("frontend: kaldi_fbank\nfrontend_conf: {fs: 800}\n", "KaldiFbank refuses these options: frontend_conf: fs 800"),
        ("frontend: kaldi_fbank\nfrontend_conf: {n_mels: many}\n", "KaldiFbank refuses these options"),
        ("frontend: kaldi_fbank\nfrontend_conf: [1]\n", "must be 'key: value' lines"),
        ("n_mels: many\n", "DefaultFrontend refuses these options"),
        ("hop_length: 0\n", "DefaultFrontend refuses these options"),
        ("hop_length: -5\n", "DefaultFrontend refuses these options"),
        ("win_length: 600\n", "DefaultFrontend refuses these options"),
        ("onesided: false\n", "DefaultFrontend refuses these options"),
        ("fs: abc\n", "conf.yaml: fs 'abc' is no sampling rate"),
    ],
)
def test_broken_options_are_refused(yaml_text: str, message: str, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text(yaml_text)
    with pytest.raises(UserError, match=message):
        extract_features(data_dir, tmp_path / "dump", tmp_path / "conf.yaml")


@pytest.mark.parametrize(("count", "rate", "message"), [(9000, 8000, "has 8000 Hz"), (256, 16000, "too short")])
def test_unfit_audio_is_named(count: int, rate: int, message: str, data_dir: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a-2.wav", np.ones(count) * 0.1, rate)
    with pytest.raises(UserError, match=rf"a-2\.wav: .*{message}"):
        extract_features(data_dir, tmp_path / "dump")
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize("value", ["touch {0}; cat x |", "| touch {0}", "touch {0} |:5", "touch {0} |[0:2]:5", "{0}", ":5"])
def test_commands_in_feats_scp_are_not_run(value: str, data_dir: Path, tmp_path: Path) -> None:
    extract_features(data_dir, tmp_path / "dump")
    scp = tmp_path / "dump" / "feats.scp"
    scp.write_text("".join(f"{key} {value.format(tmp_path / 'pwned')}\n" for key in ("a-1", "a-2", "b-1")))
    for read in (load_scp, lambda path: filter_lengths(path.parent, tmp_path / "out", 0, 9)):
        with pytest.raises(UserError, match=r"feats\.scp:1: (commands are not run|.* is not FILE:OFFSET)"):
            read(scp)
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "out").exists()


def test_commands_in_the_path_of_feats_scp_are_not_run(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    extract_features(data_dir, tmp_path / "dump")
    (tmp_path / "|touch pwned #").symlink_to("dump")
    assert load_scp(Path("|touch pwned #") / "feats.scp")["a-1"].shape[1] == 80
    assert not (tmp_path / "pwned").exists()


def test_utterances_shorter_than_a_window_are_named(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text("center: false\n")
    for count in (512, 511):
        soundfile.write(tmp_path / "a-2.wav", np.ones(count) * 0.1, 16000)
        made = extract_features(data_dir, tmp_path / "dump", tmp_path / "conf.yaml", max_skipped=50)
        assert made.utterances == (3 if count == 512 else 2)
    assert "a-2.wav: 511 samples are too short for n_fft 512" in (tmp_path / "dump" / "skipped").read_text()


@pytest.mark.parametrize("name", ["a,b", "a|b"])
def test_folders_that_kaldi_cannot_name_are_refused(name: str, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--out .*: Kaldi's tools read ',' and '|'"):
        extract_features(data_dir, tmp_path / name)
    assert not list(tmp_path.glob("*a[,|]b*"))


def test_a_rate_of_nothing_has_no_frame_shift(tmp_path: Path) -> None:
    (tmp_path / "frontend.yaml").write_text("frontend_conf: {fs: 0, hop_length: 160}\n")
    with pytest.raises(UserError, match="frontend.yaml: does not tell fs"):
        frame_shift(tmp_path)


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .*No such file"),
        (b"", "there is no matrix"),
        (b"garbage", "there is no matrix"),
        (b"\0BFM \4\x63\0\0\0\4\x63\0\0\0", "cannot be read"),
        (b"\0BFV \4\1\0\0\0abcd", "there is no matrix"),
        (b" [ 1 2", "cannot be read"),
        (b"PKL" + pickle.dumps(Payload()), "there is no matrix"),
    ],
)
def test_a_broken_archive_is_named_and_nothing_unpickled(
    content: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "x.ark").write_bytes(b"u " + content)
    (tmp_path / "feats.scp").write_text("u x.ark:2\n")
    with pytest.raises(UserError, match=rf"feats\.scp: u: x\.ark:2: {message}"):
        load_scp(tmp_path / "feats.scp")["u"]
    assert not (tmp_path / "pwned").exists()


def test_either_ark_library_writes_what_the_other_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("omniio.kaldi")
    import kaldiio
    from omniio import kaldi as omniio_kaldi

    from espnet_ee.data import kaldi_ark

    matrix = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    exact, packed = [], []
    for number, library in enumerate((kaldiio, omniio_kaldi)):
        monkeypatch.setattr(kaldi_ark, "_kaldi", library)
        ark = tmp_path / f"{number}.ark"
        exact.append((write_ark(ark, [("u", matrix), ("v", matrix[:1])])["v"].rpartition(":")[2], ark.read_bytes()))
        table = write_ark(tmp_path / f"{number}.packed.ark", [("u", matrix)], compress=True)
        packed.append(kaldiio.load_mat(table["u"]))
    assert exact[0] == exact[1]
    # The two round differently when they pack, by one of 255 steps of a column's range at most.
    assert np.abs(packed[0] - packed[1]).max() <= np.ptp(matrix) / 100


def test_features_without_their_counts_are_one_line_where_these_are_needed(
    data_dir: Path, tmp_path: Path, conf_file: Path
) -> None:
    """As Kaldi's and stock ESPnet's recipes make them."""
    out = tmp_path / "dump"
    extract_features(data_dir, out, conf_file)
    (out / "utt2num_frames").unlink()
    assert validate_data_dir(out, "extracted").utt_ids == ["a-1", "a-2", "b-1"]
    with pytest.raises(UserError, match=r"has feats\.scp, and no utt2num_frames, .*; decode .* with python3 -m espnet_ee"):
        read_inputs(out, 16000)
    (out / "wav.scp").unlink(missing_ok=True)
    with pytest.raises(UserError, match="has neither utt2num_frames nor wav.scp; extract the features again"):
        filter_lengths(out, tmp_path / "kept", 0.1, 20)
    assert not (tmp_path / "kept").exists()
