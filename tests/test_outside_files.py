"""Every reader of files that come from outside, on damaged ones: a value or a UserError of one line, never anything else.

A case takes whole files, and damages one of them a few times. ``ESPNET_EE_FUZZ_CASES=20000 pytest tests/test_outside_files.py``
looks further, and elsewhere each time; without it the cases are few and always the same.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from espnet_ee.data.an4 import An4
from espnet_ee.data.datadir import validate_data_dir
from espnet_ee.data.inputs import content_digest, read_inputs
from espnet_ee.data.kaldi_ark import write_ark
from espnet_ee.data.librispeech import read_chapter
from espnet_ee.data.sets import compare_sets
from espnet_ee.data.tedlium import TedLium2, TedLium3
from espnet_ee.data.tokens import make_tokens
from espnet_ee.data.voxpopuli import VoxPopuli
from espnet_ee.data.word_times import read_word_times
from espnet_ee.decode.journal import open_journal
from espnet_ee.errors import UserError
from espnet_ee.policy.budget import read_curve
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.runtime.model import open_export
from espnet_ee.runtime.onnx_file import read_signature
from espnet_ee.score.bootstrap import draws
from espnet_ee.score.grid import fixed_outcomes, read_grid
from espnet_ee.score.kept import read_failed
from espnet_ee.score.models import compare_models, page_lines
from espnet_ee.score.points import make_point, read_exits, write_exits
from espnet_ee.score.runs import read_run
from espnet_ee.search.arpa import NgramScorer
from espnet_ee.search.lexicon import read_lexicon
from espnet_ee.store.onnx_threshold import change_threshold
from espnet_ee.store.tensors import read_tensors, write_safetensors
from espnet_ee.store.train_config import check_encoder, read_train_config, sampling_rate
from espnet_ee.store.untrusted import check_config, read_untrusted_yaml
from tests import tiny
from tests.runtime import exports
from tests.score.conftest import SETS, make_references, make_table, write_every_exit, write_online
from tests.search.test_beam import ARPA

CASES = os.environ.get("ESPNET_EE_FUZZ_CASES")
ROOT = Path(__file__).resolve().parents[1]
RATE = 16000

Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """A reader with files that it reads."""

    files: Callable[[], Files]
    read: Callable[[Path], Any]
    fixed: Callable[[], Files] = dict  # those that are not damaged


def wav(seconds: float = 2.0) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.random.default_rng(0).uniform(-0.1, 0.1, int(seconds * RATE)), RATE, format="WAV")
    return stream.getvalue()


def made(make: Callable[[Path], object], *names: str) -> Files:
    """Files that a writer of ours makes."""
    folder = Path(os.environ["ESPNET_EE_FUZZ_FOLDER"])
    make(folder)
    return {name: (folder / name).read_bytes() for name in names}


def exits_csv(folder: Path) -> None:
    write_every_exit(folder, "abcdef")
    (folder / "text").write_text("".join(f"{utt} {text}\n" for utt, text in make_references().items()))
    grid = read_grid(folder / "evidence.tsv", folder / "text", "dev")
    drawn = draws(len(grid.utterances))
    write_exits(
        folder / "exits.csv", [make_point("dev", "fixed", f"exit {n}", o, drawn) for n, o in enumerate(fixed_outcomes(grid))]
    )


def read_tedlium(folder: Path) -> None:
    for corpus in (TedLium2(folder), TedLium2(folder, options={"text_rules": "espnet"})):
        list(corpus.utterances("train"))


def lm_text(folder: Path) -> None:
    (folder / "legacy/dev/stm").mkdir(parents=True, exist_ok=True)
    list(TedLium3(folder).lm_sentences())


def read_data(folder: Path) -> None:
    validate_data_dir(folder)
    content_digest(folder)
    for item in read_inputs(folder, RATE):
        item.load()


def lay_beside(folder: Path) -> None:
    compare_sets(folder, [folder])


def read_every_exit(folder: Path) -> None:
    grid = read_grid(folder / "evidence.tsv", folder / "text", "dev")
    read_failed(folder)
    draw = draws(len(grid.utterances))
    for reached in fixed_outcomes(grid):
        make_point("dev", "fixed", "exit", reached, draw)


def read_import(folder: Path) -> None:
    grid = read_grid(folder / "table.tsv", None)
    draw = draws(len(grid.utterances))
    for reached in fixed_outcomes(grid):
        make_point("dev", "fixed", "exit", reached, draw)


def read_online(folder: Path) -> None:
    grid = read_grid(folder / "evidence.tsv", folder / "text", "test")
    str(read_run(folder, "entropy", grid, make_references(SETS["test"])))


def online(folder: Path) -> None:
    write_every_exit(folder, SETS["test"])
    (folder / "text").write_text("".join(f"{utt} {text}\n" for utt, text in make_references(SETS["test"]).items()))
    write_online(folder, SETS["test"], EntropyPolicy(0.325), rtf=0.05)


def read_decoding(folder: Path) -> None:
    for path in folder.glob("*.yaml"):
        config = DecodingConfig.read(path)
        config.policy_for((2, 4, 6)).should_stop(make_table().utterances["a"].evidence[:1])
        DecodingConfig.from_mapping(config.to_mapping(), "again")


def read_package(folder: Path) -> None:
    for path in folder.glob("*.yaml"):
        check_config(read_untrusted_yaml(path), path)


def stopping_graph() -> bytes:
    threshold = helper.make_tensor("threshold", TensorProto.FLOAT, [], [0.1])
    return helper.make_model(helper.make_graph([], "stops", [], [], [threshold])).SerializeToString()


def read_training(folder: Path) -> None:
    config = read_train_config(folder / "config.yaml")
    check_encoder(config, folder / "config.yaml")
    sampling_rate(config)


def read_journal(folder: Path) -> None:
    with open_journal(folder / "dev", {"model": 1}) as journal:
        journal.add({}, 0.5)


def identity_lines(folder: Path) -> None:
    IDENTITY.check_statistics(str(folder / "train.yaml"), [])
    IDENTITY.lines(RATE, str(folder / "train.yaml"), ["--max_epoch", "3", "--optim_conf", "lr=0.1"])


def _identity() -> Any:
    spec = importlib.util.spec_from_file_location("identity_of_stages", ROOT / "egs/TEMPLATE/asr1/utils/identity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


IDENTITY = _identity()
TEXT = b"u1 ONE  TWO\nu2 TWO\nu3\n"
VOXPOPULI = (
    b"id\traw_text\tnormalized_text\tspeaker_id\tsplit\n"
    b"2013-0\tOne.\tone\t1\ttrain\n2013-1\tTwo\ttwo  \tNone\ttrain\n2013-2\t\t\t2\ttrain\n"
)
IMPORTED = (
    "utt_id\texit_layer\treference\thypothesis\tentropy\tposterior\taudio_seconds\tencoder_macs\thead_macs\tframes\n"
    "a\t2\tone two\tone\t0.1\t0.5\t1.5\t100\t10\t7\na\t4\tone two\tone two\t0.05\t1\t1.5\t200\t10\t7\n"
    "b\t2\tone\t\t0.2\t0.25\t2\t100\t10\t7\nb\t4\tone\tone\t0.01\t\t2\t200\t10\t7\n"
)
DECODINGS: Mapping[str, Any] = {
    "fixed": {"exit_layer": 2}, "entropy": {"threshold": 0.01}, "confidence": {"threshold": 0.9}, "patience": {"threshold": 2},
    "posterior": {"threshold": 0.5, "nbest": 4},
    "learned": {"threshold": 0.1, "weights": {"log_entropy": 1.5}, "intercepts": {2: 0.5, 4: 0.1}, "returns": {2: 0.1, 4: 0.0}},
}  # fmt: skip

CONFIDENCES = {2: {"said": [0.5, 0.9], "right": [0.25, 0.75]}, 4: {"said": [0.5], "right": [0.5]}}
SELF_STOPPING = {
    "exit_layers": [2, 4],
    "self_stopping": {"fp32": "self_stopping.onnx", "policy": {"policy": "entropy", "policy_conf": {"threshold": 0.1}}},
}

READERS = {
    "stm": Reader(
        lambda: {"train/stm/T.stm": b";; x\nT 1 s 0.1 0.5 <o,f0,male> one 's (2) {SMACK}\nT 1 s 0.6 1.25 <F0_M> two <unk>\n"},
        read_tedlium,
        lambda: {"train/sph/T.sph": wav()},
    ),
    "language model": Reader(
        lambda: {"lm.arpa": ARPA.encode()}, lambda folder: NgramScorer(folder / "lm.arpa", ("<blank>", "A", "B", "▁"), 0, 1.0)
    ),
    "lm text": Reader(lambda: {"LM/a.en.gz": gzip.compress(b"<s> one two </s>\nthree\n", mtime=0)}, lm_text),
    "trans.txt": Reader(
        lambda: {"7/1/7-1.trans.txt": b"7-1-0000 ONE\n7-1-0001 TWO\n"},
        lambda folder: list(read_chapter(folder / "7/1")),
        lambda: {f"7/1/7-1-000{number}.flac": b"" for number in range(2)},
    ),
    "an4": Reader(
        lambda: {"etc/an4_test.fileids": b"s/a\ns/b\n", "etc/an4_test.transcription": b"<s> ONE </s> (a)\nTWO (b)\n"},
        lambda folder: list(An4(folder).utterances("test")),
        lambda: {"etc/an4_train.fileids": b"", "wav/s/a.sph": b"", "wav/s/b.sph": b""},
    ),
    "voxpopuli": Reader(
        lambda: {"asr_train.tsv": VOXPOPULI},
        lambda folder: list(VoxPopuli(folder).utterances("train")),
        lambda: {f"2013/2013-{number}.ogg": b"" for number in range(3)},
    ),
    "data directory": Reader(
        lambda: {
            "wav.scp": b"r a.wav\ns b.wav\n",
            "segments": b"u1 r 0.1 0.5\nu2 r 0.5 1.23\nu3 s 0 2\n",
            "text": TEXT,
            "utt2spk": b"u1 s\nu2 s\nu3 s\n",
            "spk2utt": b"s u1 u2 u3\n",
            "utt2num_samples": b"u1 6400\nu2 11680\nu3 32000\n",
        },
        read_data,
        lambda: {"a.wav": wav(), "b.wav": wav()},
    ),
    "word times": Reader(
        lambda: {"words.ctm": b"u1 1 0.1 0.2 ONE 0.9\n;; x\nu1 1 0.5 0 TWO\n"},
        lambda folder: read_word_times(folder / "words.ctm"),
    ),
    "lexicon": Reader(
        lambda: {"words.txt": b"AB A B\nBAD\nDA D A\n"},
        lambda folder: list(read_lexicon(folder / "words.txt", ["<blank>", "<unk>", "<space>", *"ABCD", "<sos/eos>"], 0)),
    ),
    "two sets": Reader(
        lambda: {"wav.scp": b"u1 a.wav\nu2 b.wav\nu3 b.wav\n", "text": TEXT, "utt2spk": b"u1 s\nu2 s\nu3 s\n"},
        lay_beside,
        lambda: {"a.wav": wav(), "b.wav": wav()},
    ),
    "features": Reader(
        lambda: {
            **made(lambda folder: write_ark(folder / "a.ark", [("u1", np.zeros((3, 2)))]), "a.ark"),
            "feats.scp": b"u1 a.ark:3\n",
            "text": b"u1 A\n",
            "utt2spk": b"u1 s\n",
            "utt2num_frames": b"u1 3\n",
            "frontend.yaml": b"frontend: default\nfrontend_conf: {fs: 16000, hop_length: 160}\n",
            "feats_type": b"extracted\n",
        },
        read_data,
    ),
    "token text": Reader(lambda: {"text": TEXT}, lambda folder: make_tokens([folder / "text"], "char", folder / "out")),
    "evidence": Reader(
        lambda: {
            **made(lambda folder: write_every_exit(folder, "abcdef"), "evidence.tsv", "timing.tsv"),
            "text": "".join(f"{utt} {text}\n" for utt, text in make_references().items()).encode(),
            "failed": b"zz does not fit\n",
        },
        read_every_exit,
    ),
    "imported": Reader(lambda: {"table.tsv": IMPORTED.encode()}, read_import),
    "exits.csv": Reader(lambda: made(exits_csv, "exits.csv"), lambda folder: read_exits(folder / "exits.csv")),
    "models": Reader(lambda: made(exits_csv, "exits.csv"), lambda folder: page_lines(compare_models([f"x={folder}"]))),
    "curve": Reader(lambda: made(exits_csv, "exits.csv"), lambda folder: read_curve(folder / "exits.csv", {})),
    "online run": Reader(
        lambda: made(online, "1best_recog/text", "utt2exit", "utt2macs", "decode.yaml"),
        read_online,
        lambda: made(online, "evidence.tsv", "text"),
    ),
    "decoding": Reader(
        lambda: {
            f"{name}.yaml": yaml.safe_dump(
                {"policy": name, "policy_conf": conf, "batch_size": 2, "num_threads": 1, "confidences": CONFIDENCES}
            ).encode()
            for name, conf in DECODINGS.items()
        },
        read_decoding,
    ),
    "package": Reader(lambda: {"config.yaml": yaml.safe_dump(tiny.config()).encode()}, read_package),
    "training": Reader(
        lambda: {
            "config.yaml": yaml.safe_dump({**tiny.config(), "token_list": "tokens.txt"}).encode(),
            "tokens.txt": "".join(f"{token}\n" for token in tiny.TOKENS).encode(),
        },
        read_training,
    ),
    "training options": Reader(lambda: {"train.yaml": yaml.safe_dump(tiny.TRAINING).encode()}, identity_lines),
    "safetensors": Reader(
        lambda: made(lambda folder: write_safetensors(folder / "m.safetensors", {"a": torch.zeros(2, 3)}), "m.safetensors"),
        lambda folder: read_tensors(folder / "m.safetensors"),
    ),
    "checkpoint": Reader(
        lambda: made(lambda folder: torch.save({"a": torch.zeros(2, 3)}, folder / "m.pth"), "m.pth"),
        lambda folder: read_tensors(folder / "m.pth"),
    ),
    "export": Reader(
        lambda: {
            "model.yaml": yaml.safe_dump(exports.description()).encode(),
            "tokens.txt": "".join(f"{token} {number}\n" for number, token in enumerate(exports.TOKENS)).encode(),
            "package.yaml": b"format: 1\ndefault: entropy\n",
            "decode_entropy.yaml": b"policy: entropy\npolicy_conf: {threshold: 0.1}\n",
        },
        open_export,
    ),
    "self-stopping file": Reader(
        lambda: {"model.yaml": yaml.safe_dump(SELF_STOPPING).encode(), "self_stopping.onnx": stopping_graph()},
        lambda folder: change_threshold(folder, 0.5),
    ),
    "graph": Reader(
        lambda: made(lambda folder: exports.write_export(folder / "onnx"), "onnx/segment_01.onnx"),
        lambda folder: read_signature(folder / "onnx/segment_01.onnx"),
    ),
    "journal": Reader(
        lambda: {".dev.journal": b'{"model": 1}\n{"seconds": 0.5, "results": {}}\n{"seconds": 0.25, "results": {}}\n'},
        read_journal,
    ),
}

PIECES = [
    *(
        b"\t",
        b"\n",
        b" ",
        b"  ",
        b"\r\n",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        "\u0663".encode(),
        "\u2028".encode(),
        "\u00b2".encode(),
    ),
    *(
        b"nan",
        b"inf",
        b"-inf",
        b"1e999",
        b"-1",
        b"0",
        b"1_0",
        b"0x1f",
        b"1e-400",
        b"9" * 30,
        b"9" * 5000,
        b"-0.0",
        b"+5",
        b"1e400",
    ),
    *(
        b"|",
        b"'",
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b": ",
        b"- ",
        b"#",
        b"&a ",
        b"*a",
        b"!!python/object:os.system ",
        b"~",
        b"null",
    ),
    *(
        b"true",
        b"2001-01-01",
        b"? ",
        b"<<: ",
        b"/",
        b"..",
        b"a" * 300,
        b"(",
        b")",
        b"<",
        b"\\",
        b"\\t",
        b"=",
        b",",
        b";;",
        b"%",
    ),
    *(b"\x1b[31m", "é".encode(), "e\u0301".encode(), "\U0001f600".encode(), b"utt_id", b"reference", b"audio_seconds"),
]
KINDS = ["cut", "insert", "replace", "double", "swap", "end", "field"]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.floats(0, 1),
        st.floats(0, 1),
        st.one_of(st.sampled_from(PIECES), st.binary(max_size=6)),
    ),
    min_size=1,
    max_size=3,
)


Change = tuple[str, float, float, bytes]
fixed_cases = settings(
    max_examples=200, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def any_change(chance: random.Random) -> Change:
    """As hypothesis draws them, but a hundred times as fast."""
    piece = chance.choice(PIECES) if chance.random() < 0.8 else chance.randbytes(chance.randint(0, 6))
    return chance.choice(KINDS), chance.random(), chance.random(), piece


def damage(content: bytes, changes: Sequence[Change]) -> bytes:
    """Cuts, doubles, mixes up or overwrites parts of a file."""
    for kind, place, other, piece in changes:
        at = int(place * len(content))
        if kind in ("cut", "replace"):
            end = at + 1 + int(other * 12)
            content = content[:at] + (piece if kind == "replace" else b"") + content[end:]
        elif kind == "insert":
            content = content[:at] + piece + content[at:]
        elif kind == "end":
            content = content[:at]
        elif kind == "field":  # one word or number becomes another
            parts = content.replace(b"\t", b" ").split(b" ")
            number = min(int(place * len(parts)), len(parts) - 1)
            start = sum(len(part) + 1 for part in parts[:number])
            content = content[:start] + piece + content[start + len(parts[number].split(b"\n")[0]) :]
        else:
            lines = content.splitlines(keepends=True) or [b""]
            one, two = (min(int(where * len(lines)), len(lines) - 1) for where in (place, other))
            if kind == "swap":
                lines[one], lines[two] = lines[two], lines[one]
            else:
                lines.insert(two, lines[one])
            content = b"".join(lines)
    return content


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the current one: tables name files in it."""
    made_in = tmp_path / "made"
    made_in.mkdir()
    monkeypatch.setenv("ESPNET_EE_FUZZ_FOLDER", str(made_in))
    (tmp_path / "case").mkdir()
    monkeypatch.chdir(tmp_path / "case")
    return tmp_path / "case"


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_a_value_or_one_line(folder: Path, name: str) -> None:
    reader = READERS[name]
    files, fixed = reader.files(), reader.fixed()
    write(folder, {**files, **fixed})
    reader.read(folder)  # what is whole is read
    said = []

    def check(file: str, changes: Sequence[Change]) -> None:
        (folder / file).write_bytes(damage(files[file], changes))
        try:
            reader.read(folder)
        except UserError as error:
            said.append(str(error))
        except Exception as error:
            error.add_note(f"{file}: {changes}") if hasattr(error, "add_note") else print(file, changes)
            raise
        finally:
            write(folder, {file: files[file]})
            shutil.rmtree(folder / "out", ignore_errors=True)

    if CASES:
        chance = random.Random()
        for _ in range(int(CASES)):
            check(chance.choice(sorted(files)), [any_change(chance) for _ in range(chance.randint(1, 3))])
    else:
        fixed_cases(given(st.sampled_from(sorted(files)), CHANGES)(check))()
    assert name == "journal" or said, "nothing was ever refused"
