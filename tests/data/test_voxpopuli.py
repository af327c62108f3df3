"""VoxPopuli as its own tools leave it, in small: every column, Ogg Vorbis, rows without text and without a speaker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ee.data.datadir import validate_data_dir
from espnet_ee.data.format_audio import format_audio
from espnet_ee.data.prepare import prepare_set
from espnet_ee.data.registry import open_corpus
from espnet_ee.data.skips import Skip
from espnet_ee.data.voxpopuli import ROWS
from espnet_ee.errors import UserError
from espnet_ee.kaldi import read_scp

RATE = 16000
HEADER = ("id", "raw_text", "normalized_text", "speaker_id", "split", "gender", "is_gold_transcript", "accent")
FIRST = "20130114-0900-PLENARY-15-en_20130114-20:22:02_2"
# Of each set: id, raw text, normalised text, speaker.
TABLES = {
    "train": [
        (FIRST, 'He said: "no.', "he said  no", "96998"),
        ("20140203-0900-PLENARY-3-en_20140203-17:04:11_0", "", "twenty three", "None"),
        ("20140203-0900-PLENARY-3-en_20140203-17:04:11_1", "(Applause)", "", "28"),
    ],
    "dev": [("20150518-0900-PLENARY-4-en_20150518-19:00:00_0", "Thank you.", "thank you", "28")],
    "test": [
        ("20160704-0900-PLENARY-5-en_20160704-21:10:10_0", "Next.", "next", "7"),
        ("20160704-0900-PLENARY-5-en_20160704-21:10:10_1", "…", " ", "7"),
    ],
}


def lines(set_name: str, columns: int = len(HEADER)) -> list[str]:
    rows = [(*cells, set_name, "female", "True", "None") for cells in TABLES[set_name]]
    return ["\t".join(row[:columns]) for row in (HEADER, *rows)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that holds transcribed_data."""
    folder = tmp_path / "voxpopuli" / "transcribed_data" / "en"
    noise = np.random.default_rng(1)
    for name, rows in TABLES.items():
        for row in rows:
            path = folder / row[0][:4] / f"{row[0]}.ogg"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, noise.uniform(-0.1, 0.1, RATE // 2), RATE, format="OGG", subtype="VORBIS")
        (folder / f"asr_{name}.tsv").write_text("\n".join(lines(name)) + "\n", encoding="utf-8")
    return tmp_path / "voxpopuli"


@pytest.mark.parametrize("inner", ["", "transcribed_data", "transcribed_data/en"])
def test_sets_text_and_speakers_are_the_corpus_own(root: Path, inner: str) -> None:
    corpus = open_corpus("voxpopuli", root / inner)
    assert list(corpus.sets) == ["train", "dev", "test"]
    known, unknown, silent = corpus.utterances("train")
    assert (known.utt_id, known.speaker, known.text) == (f"96998-{FIRST}", "96998", "he said no")
    assert unknown.utt_id == unknown.speaker == TABLES["train"][1][0]
    assert unknown.text == "twenty three" and unknown.audio.is_file()
    assert isinstance(silent, Skip) and silent.reason.endswith("asr_train.tsv:4: has no normalised text")


def test_what_has_no_text_is_skipped_in_training_and_counted_and_stays_where_it_is_scored(root: Path, tmp_path: Path) -> None:
    corpus, data = open_corpus("voxpopuli", root), tmp_path / "data"
    with pytest.raises(UserError, match=r"1 of 3 utterances are broken, more than 1 %"):
        prepare_set(corpus, "train", data / "train", max_skipped=1)
    made = prepare_set(corpus, "train", data / "train", max_skipped=50)
    assert (made.utterances, len(made.skips)) == (2, 1)
    assert list(read_scp(data / "train" / "skipped")) == [f"28-{TABLES['train'][2][0]}"]
    assert prepare_set(corpus, "test", data / "test").utterances == 2
    assert list(validate_data_dir(data / "test").tables["text"].values()) == ["next", ""]
    assert f"the published set has {ROWS['train']}" in made.describe(data / "train")


def test_signs_that_nobody_sees_are_removed_and_counted(root: Path, tmp_path: Path) -> None:
    table = root / "transcribed_data" / "en" / "asr_dev.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("thank you", "th\u00adank\u200byou\u2060"), encoding="utf-8")
    made = prepare_set(open_corpus("voxpopuli", root), "dev", tmp_path / "dev")
    assert list(validate_data_dir(tmp_path / "dev").tables["text"].values()) == ["thank you"]
    assert made.describe(tmp_path / "dev").endswith("; warning: 3 invisible signs removed from its texts")


def test_its_audio_is_read(root: Path, tmp_path: Path) -> None:
    prepare_set(open_corpus("voxpopuli", root), "dev", tmp_path / "data")
    assert format_audio(tmp_path / "data", tmp_path / "dump", RATE).utterances == 1
    assert list(read_scp(tmp_path / "dump" / "utt2num_samples").values()) == ["8000"]


def test_tables_of_the_first_release_have_fewer_columns(root: Path) -> None:
    path = root / "transcribed_data" / "en" / "asr_dev.tsv"
    path.write_text("\n".join(lines("dev", 6)) + "\n", encoding="utf-8")
    (utterance,) = open_corpus("voxpopuli", root).utterances("dev")
    assert utterance.text == "thank you"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("normalized_text", "text", r"asr_dev\.tsv:1: has no column 'normalized_text'; make"),
        ("\tfemale", "", r"asr_dev\.tsv:2: has 7 cells, its header 8; mend"),
        ("\tdev\t", "\ttest\t", r"asr_dev\.tsv:2: is of the set 'test', not of 'dev'"),
        ("19:00:00_0", "19:00:00_9", r"asr_dev\.tsv:2: there is no .*/2015/.*_9\.ogg; cut"),
        ("20150518-0900-PLENARY-4-en_20150518-19:00:00_0", "../x", r"asr_dev\.tsv:2: the id '\.\./x' is not YEAR"),
        ("\t28\t", "\tMs X\t", r"asr_dev\.tsv:2: the speaker 'Ms X' has a blank"),
    ],
)
def test_a_broken_table_is_one_line_with_its_place(root: Path, old: str, new: str, message: str) -> None:
    path = root / "transcribed_data" / "en" / "asr_dev.tsv"
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        list(open_corpus("voxpopuli", root).utterances("dev"))


@pytest.mark.process
def test_the_recipe_prepares_it(root: Path, tmp_path: Path) -> None:
    script = str(Path(__file__).resolve().parents[2] / "egs" / "voxpopuli" / "asr1" / "run.sh")
    options = ("--stop_stage", "4", "--nj", "1", "--max_skipped", "50", "--voxpopuli_root", str(root))
    folders = ("--datadir", f"{tmp_path}/data", "--dumpdir", f"{tmp_path}/dump", "--expdir", f"{tmp_path}/exp")
    environment = {**os.environ, "ESPNET_EE_PYTHON": sys.executable}
    command = ["bash", script, *options, *folders]
    result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "1 skipped" in result.stdout
    assert {name: len(read_scp(tmp_path / "dump" / "raw" / name / "wav.scp")) for name in TABLES} == {
        "train": 2,
        "dev": 1,
        "test": 2,
    }
