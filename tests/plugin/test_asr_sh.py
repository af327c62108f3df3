"""ESPnet's own asr.sh, unmodified, with our launcher as its ``--python``: stages 1 to 14 on a corpus of a few utterances.

Its scripts are in no package: ESPNET_ROOT names a clone of ESPnet that has one of Kaldi in tools/kaldi (see CONTRIBUTING.md).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from espnet_ee.api import EarlyExitASR
from espnet_ee.cli.main import main as espnet_ee
from espnet_ee.decode.recognition import Recognition
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.decoding import DecodingConfig
from tests import tiny

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
CLONE = "a clone of the installed ESPnet that has one of Kaldi in tools/kaldi"
RATE = 16000
TONES = {"A": 500.0, "B": 900.0, "C": 1600.0, "D": 2800.0, " ": 0.0}  # Hz
SETS = {"train": 64, "dev": 6, "test": 6}
TRAINING = {
    **tiny.TRAINING,
    "encoder_conf": {**tiny.TRAINING["encoder_conf"], "output_size": 32, "linear_units": 64, "dropout_rate": 0.0},
    "optim_conf": {"lr": 4.0e-3},
    "use_matplotlib": True,  # stage 14 packs its pictures
    "batch_type": "numel",
    "batch_bins": 250000,
    "num_workers": 0,
    "max_epoch": 10,
    "keep_nbest_models": 1,
}
DECODE_ASR = {"ctc_weight": 0.3, "beam_size": 4, "penalty": 0.0, "maxlenratio": 0.0, "lm_weight": 0.5}  # as recipes have it
OPTIONS = """
    --python "python3 -m espnet_ee" --ngpu 0 --nj 1 --inference_nj 2 --use_lm false --skip_packing false
    --audio_format wav --asr_config conf/train_ee.yaml --inference_asr_model valid.loss.ave.pth
    --inference_config conf/decode_asr.yaml --train_set train --valid_set dev --test_sets test
"""
UNITS = {"char": "--token_type char ", "bpe": "--token_type bpe --nbpe 8 "}
# Where there is no sclite: the lines of its that stage 13 and RESULTS.md show.
SCLITE = """#!/usr/bin/env python3
import sys
from espnet_ee.score.wer import add_counts, count_edits
ref, hyp = ([line.rpartition("(")[0].strip() for line in open(sys.argv[sys.argv.index(side) + 1])] for side in ("-r", "-h"))
sums = add_counts(count_edits(list(zip(ref, hyp, strict=True)), "word"))
rates = [sums.percent(n) for n in (sums.hits, sums.substitutions, sums.deletions, sums.insertions, sums.errors)]
print("| SPKR | # Snt # Wrd | Corr Sub Del Ins Err S.Err |")
print("| Sum/Avg |", sums.sentences, sums.tokens, "|", *(f"{rate:.1f}" for rate in (*rates, sums.sentence_rate)), "|")
"""


def scripts() -> tuple[Path, Path, Path]:
    """A clone of ESPnet, its recipes' template, and Kaldi's folder of scripts."""
    if not os.environ.get("ESPNET_ROOT"):
        pytest.skip(f"ESPNET_ROOT is not set: asr.sh is in no package; name {CLONE}")
    root = Path(os.environ["ESPNET_ROOT"]).resolve()
    template, kaldi = root / "egs2/TEMPLATE/asr1", root / "tools/kaldi/egs/wsj/s5"
    for path in (template / "asr.sh", kaldi / "utils/parse_options.sh"):
        if not path.is_file():
            pytest.fail(f"{path}: no such file; ESPNET_ROOT is to name {CLONE}")
    return root, template, kaldi


def write_corpus(folder: Path) -> None:
    """Words of letters that are tones, by two speakers, as a Kaldi directory for every set."""
    random = np.random.default_rng(0)
    for name, number in SETS.items():
        data = folder / name
        (data / "wav").mkdir(parents=True)
        texts = {}
        for key in sorted(f"{speaker}-{name}{index:02}" for index in range(number // 2) for speaker in ("low", "loud")):
            words = ["".join(random.choice([*"ABCD"], random.integers(2, 4))) for _ in range(random.integers(2, 4))]
            texts[key] = " ".join(words)
            samples = np.concatenate([tone(letter, random) for letter in texts[key]])
            soundfile.write(data / "wav" / f"{key}.wav", samples * (0.1 if key.startswith("low") else 0.4), RATE)
        tables = {
            "wav.scp": {key: data / "wav" / f"{key}.wav" for key in texts},
            "text": texts,
            "utt2spk": {key: key.partition("-")[0] for key in texts},
            "spk2utt": {s: " ".join(key for key in texts if key.startswith(f"{s}-")) for s in ("loud", "low")},
        }
        for table, rows in tables.items():
            (data / table).write_text("".join(f"{key} {value}\n" for key, value in rows.items()))


def tone(letter: str, random: np.random.Generator) -> np.ndarray:
    """0.2 s, then a short pause, so that a letter can follow itself."""
    time = np.arange(int(RATE * random.uniform(0.18, 0.24))) / RATE
    wave = np.sin(2 * np.pi * TONES[letter] * random.uniform(0.97, 1.03) * time)
    return np.concatenate([wave, np.zeros(RATE // 12)]) + random.standard_normal(len(time) + RATE // 12) * 0.01


@pytest.fixture(scope="module", params=UNITS)
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe as ESPnet's setup.sh makes one, but with this interpreter, after stages 1 to 14."""
    root, template, kaldi = scripts()
    folder = tmp_path_factory.mktemp("egs2") / "tones" / "asr1"
    for name in ("conf", "local", "bin"):
        (folder / name).mkdir(parents=True)
    for source in (template / "asr.sh", template / "scripts", template / "pyscripts", kaldi / "utils", kaldi / "steps"):
        (folder / source.name).symlink_to(source)
    write_corpus(folder / "corpus")
    (folder / "conf/units").write_text(UNITS[request.param])
    (folder / "conf/train_ee.yaml").write_text(yaml.safe_dump(TRAINING))
    (folder / "conf/decode_asr.yaml").write_text(yaml.safe_dump(DECODE_ASR))
    (folder / "cmd.sh").write_text("export train_cmd=run.pl cuda_cmd=run.pl decode_cmd=run.pl\n")
    (folder / "path.sh").write_text(
        "export LC_ALL=C PYTHONIOENCODING=UTF-8 OMP_NUM_THREADS=1\n"
        f'export PATH="$PWD/utils:{Path(sys.executable).parent}:{root}/utils:{root}/tools/sctk/bin:$PATH:$PWD/bin"\n'
    )
    for name, script in {"local/data.sh": "#!/bin/sh\nmkdir -p data && cp -R corpus/* data\n", "bin/sclite": SCLITE}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    asr_sh(folder, "--stop_stage 14")
    return folder


def asr_sh(folder: Path, words: str) -> str:
    """Runs the recipe; returns what it said."""
    done = subprocess.run(
        ["./asr.sh", *shlex.split(OPTIONS + (folder / "conf/units").read_text() + words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    logs = sorted(folder.glob("**/*.log"), key=lambda path: path.stat().st_mtime)
    last = f"\n{logs[-1]}:\n{logs[-1].read_text()[-4000:]}" if logs else ""
    assert done.returncode == 0, done.stdout[-3000:] + last
    return done.stdout


@pytest.fixture
def exp(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(recipe)  # ESPnet's paths are those of the recipe's folder
    (folder,) = Path("exp").glob("asr_train_ee_raw_*")
    return folder


def transcribed(model: Path, **config: Any) -> dict[str, Recognition]:
    """What our recogniser says of the test set."""
    asr = EarlyExitASR.from_pretrained(model, DecodingConfig.from_mapping({"policy": "fixed", **config}, "test"))
    return {key: asr.transcribe(path) for key, path in read_scp("dump/raw/test/wav.scp").items()}


def texts(results: dict[str, Recognition]) -> dict[str, str]:
    return {key: result.text for key, result in results.items()}


def error_rate(decoding: Path) -> float:
    """The word error rate that stage 13 wrote."""
    (line,) = [line for line in (decoding / "test/score_wer/result.txt").read_text().splitlines() if "Avg" in line]
    return float(line.replace("|", " ").split()[-2])


def test_the_recipes_own_decoding_is_that_of_the_last_exit(exp: Path) -> None:
    decoding = exp / "decode_asr_asr_model_valid.loss.ave"
    said = read_scp(decoding / "test/text", allow_empty=True)
    assert said == texts(transcribed(exp, search={"kind": "beam"}))
    assert error_rate(decoding) < 50  # of three tones in a row nearly all are right after this training
    assert "ctc_weight 1.0 in place of 0.3" in (decoding / "test/logdir/asr_inference.1.log").read_text()


def test_utterances_stop_in_stage_12_and_stage_13_scores_them(recipe: Path, exp: Path) -> None:
    to_the_end = transcribed(exp, policy="entropy", policy_conf={"threshold": 0.0})
    entropies = [result.rows[0].evidence.entropy for result in to_the_end.values()]
    policy = {"policy": "entropy", "policy_conf": {"threshold": float(np.median(entropies))}}  # half of them stop at once
    Path("conf/decode_ee.yaml").write_text(yaml.safe_dump(policy))
    said = asr_sh(recipe, "--stage 12 --stop_stage 13 --inference_tag stopping --inference_args '--policy conf/decode_ee.yaml'")
    expected = transcribed(exp, **policy)
    assert {result.exit_layer for result in expected.values()} == {1, 2}
    assert read_scp(exp / "stopping/test/text", allow_empty=True) == texts(expected)
    stops = [read_scp(exp / f"stopping/test/logdir/output.{job}/utt2exit") for job in (1, 2)]
    assert stops[0] | stops[1] == {key: str(result.exit_layer) for key, result in expected.items()}
    # asr.sh times decoding by the lines of the log.
    assert "RTF: 0.000" not in (exp / "stopping/test/logdir/calculate_rtf.log").read_text()
    assert error_rate(exp / "stopping") < 100
    assert "|stopping/test|" in said and "|decode_asr_asr_model_valid.loss.ave/test|" in said


def test_our_decodings_are_scored_by_stage_13_whose_page_stays(recipe: Path, exp: Path) -> None:
    espnet_ee(["decode", "--model", str(exp), "--data", "dump/raw/dev", "dump/raw/test", "--out", str(exp), "--every_exit"])
    asr_sh(recipe, "--stage 13 --stop_stage 13 --inference_tag decode_every_exit")
    assert error_rate(exp / "decode_every_exit") < 50
    stock = (exp / "RESULTS.md").read_bytes()
    espnet_ee(["score", "--exp", str(exp), "--data_root", "dump/raw", "--valid_set", "dev", "--test_sets", "test"])
    assert (exp / "RESULTS.md").read_bytes() == stock
    assert "|exit 1|" in (exp / "EXITS.md").read_text()


def test_the_archive_of_stage_14_is_a_model_elsewhere(exp: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(exp / f"{exp.name}_valid.loss.ave.zip") as archive:
        archive.extractall(tmp_path)
    expected = texts(transcribed(exp))
    (statistics,) = Path("exp").glob("asr_stats_raw_*")
    statistics.rename("exp/elsewhere")  # a stranger has no statistics but those of the archive
    try:
        assert texts(transcribed(tmp_path / exp)) == expected
    finally:
        Path("exp/elsewhere").rename(statistics)
