"""Stage 12 of ESPnet's recipes through the launcher: a model without a decoder, and policies that stop its utterances."""

import gc
import importlib
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_ee.__main__ import main
from espnet_ee.api import EarlyExitASR
from espnet_ee.data.kaldi_ark import write_ark
from espnet_ee.decode.loop import recognise
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.errors import run
from espnet_ee.kaldi import read_scp, write_scp
from espnet_ee.policy.decoding import DecodingConfig
from tests import tiny

UTTERANCES = {"utt1": 16000, "utt2": 9000, "utt3": 24000, "utt4": 400}
# As recipes have it: of a model with a decoder. Pruned to 3 of 8 tokens before CTC is asked.
DECODE_ASR = {"ctc_weight": 0.3, "beam_size": 2, "penalty": 0.0, "lm_weight": 0.5}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A trained model's files, a data directory, and its keys split into two jobs."""
    folder = tmp_path_factory.mktemp("recipe")
    model = tiny.model(seed=5)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("ctc_lo.weight"):
            torch.nn.init.normal_(parameter, std=1.5)
    tiny.save(folder, model, token_type="char", bpemodel=None, use_preprocessor=False)
    random = np.random.default_rng(0)
    speech = {key: random.standard_normal(samples).astype(np.float32) * 0.1 for key, samples in UTTERANCES.items()}
    for key, samples in speech.items():
        soundfile.write(folder / f"{key}.wav", samples, 16000)
    entropies = [result.rows[0].evidence.entropy for result in tiny.every_exit(model, [*speech.values()][:3])]
    policy = {"policy": "entropy", "policy_conf": {"threshold": round(sorted(entropies)[1], 4)}}  # some stop at once
    lines = [f"{key} {folder}/{key}.wav\n" for key in UTTERANCES]
    (folder / "wav.scp").write_text("".join(lines))
    for job in (1, 2):
        (folder / f"keys.{job}.scp").write_text("".join(lines[job - 1 :: 2]))
    (folder / "decode_asr.yaml").write_text(yaml.safe_dump(DECODE_ASR))
    (folder / "decode_ee.yaml").write_text(yaml.safe_dump(policy))
    return folder


def infer(recipe: Path, monkeypatch, output: str, *words: str, scp: str = "wav.scp", kind: str = "sound") -> Path:
    """Runs asr_inference as asr.sh does, in this process."""
    arguments = [
        *("--batch_size", "1", "--ngpu", "0", "--num_workers", "0", "--output_dir", str(recipe / output)),
        *("--data_path_and_name_and_type", f"{recipe}/{scp},speech,{kind}"),
        *("--asr_train_config", f"{recipe}/config.yaml", "--asr_model_file", f"{recipe}/model.pth"),
    ]
    monkeypatch.setattr(sys, "argv", ["espnet_ee", "-m", "espnet2.bin.asr_inference", *arguments, *words])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ESPnet leaves a key file open, and has warnings of its own for a short utterance
        main()
        gc.collect()
    return recipe / output


def best(folder: Path, file: str = "text") -> dict[str, str]:
    return read_scp(folder / "1best_recog" / file, allow_empty=True)


def test_a_recipes_decoding_configuration_is_right_for_a_model_without_a_decoder(recipe, monkeypatch, capsys):
    said = best(infer(recipe, monkeypatch, "recipes", "--config", f"{recipe}/decode_asr.yaml"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "no decoder" in line]
    assert len(lines) == 1 and "ctc_weight 1.0 in place of 0.3" in lines[0]
    asked = infer(recipe, monkeypatch, "asked", "--config", f"{recipe}/decode_asr.yaml", "--ctc_weight", "1.0")
    assert said == best(asked)
    assert "no decoder" not in capsys.readouterr().err
    # What stock says without it, or nothing was tested.
    monkeypatch.setattr("espnet_ee.espnet2.ctc_weight", lambda options: options["ctc_weight"])
    assert said != best(infer(recipe, monkeypatch, "stock", "--config", f"{recipe}/decode_asr.yaml"))


@pytest.mark.parametrize(
    ("trained", "weight"),
    [
        ({"decoder": "transformer", "model_conf": {"ctc_weight": 0.3}}, 0.3),
        ({"decoder": "transformer"}, 0.3),
        ({"decoder": "transducer", "model_conf": {"ctc_weight": 1.0}}, 0.3),
        ({"decoder": "transformer", "model_conf": {"ctc_weight": 1.0}}, 1.0),
        ({"decoder": None, "model_conf": {}}, 1.0),
    ],
    ids=str,
)
def test_only_a_model_without_a_decoder_is_searched_otherwise_than_asked(tmp_path, trained, weight):
    ctc_weight = importlib.import_module("espnet_ee.espnet2").ctc_weight
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"encoder": "conformer", **trained}))
    assert ctc_weight({"ctc_weight": 0.3, "asr_train_config": str(tmp_path / "config.yaml")}) == weight


@pytest.mark.parametrize("how", ["file", "configuration", "words"])
def test_every_utterance_stops_by_the_policy_and_stage_13_has_its_files(recipe, monkeypatch, capsys, how):
    config = DecodingConfig.read(recipe / "decode_ee.yaml")
    words = {
        "file": ("--config", f"{recipe}/decode_asr.yaml", "--policy", f"{recipe}/decode_ee.yaml"),
        "configuration": ("--config", f"{recipe}/decode_ee.yaml"),
        "words": ("--policy", "entropy", "--policy_conf", f"threshold={config.to_mapping()['policy_conf']['threshold']}"),
    }[how]
    outputs = [infer(recipe, monkeypatch, f"{how}.{job}", "--key_file", f"{recipe}/keys.{job}.scp", *words) for job in (1, 2)]
    asr = EarlyExitASR.from_files(recipe / "config.yaml", recipe / "model.pth", config)
    expected = {key: asr.transcribe(recipe / f"{key}.wav") for key in UTTERANCES}
    layers = {result.exit_layer for result in expected.values()}
    assert len(layers) > 1 and any(result.text for result in expected.values())
    for number, output in enumerate(outputs):
        of_job = {key: expected[key] for key in list(UTTERANCES)[number::2]}
        assert best(output) == {key: result.text for key, result in of_job.items()}
        assert best(output, "token") == {key: " ".join(result.tokens) for key, result in of_job.items()}
        assert best(output, "token_int") == {key: " ".join(map(str, r.token_ids)) for key, r in of_job.items()}
        assert best(output, "score") == {key: repr(result.score) for key, result in of_job.items()}
        assert read_scp(output / "utt2exit") == {key: str(result.exit_layer) for key, result in of_job.items()}
        assert read_scp(output / "utt2macs") == {key: str(result.macs) for key, result in of_job.items()}
    assert "policy entropy: 2 utterances, mean exit layer" in capsys.readouterr().out


def test_stored_features_need_no_counts(tmp_path, monkeypatch):
    model = tiny.model(seed=5, frontend=None, frontend_conf={}, input_size=80)
    tiny.save(
        tmp_path,
        model,
        frontend=None,
        frontend_conf={},
        input_size=80,
        token_type="char",
        bpemodel=None,
        use_preprocessor=False,
    )
    random = np.random.default_rng(0)
    features = {f"u{frames}": random.standard_normal((frames, 80)).astype(np.float32) for frames in (50, 91)}
    write_scp(tmp_path / "feats.scp", write_ark(tmp_path / "feats.ark", features.items()))
    config = DecodingConfig().changed("fixed", {"exit_layer": 2})
    expected = {key: recognise(TorchSession(model), config, [matrix])[0] for key, matrix in features.items()}
    out = infer(
        tmp_path, monkeypatch, "out", "--policy", "fixed", "--policy_conf", "exit_layer=2", scp="feats.scp", kind="kaldi_ark"
    )
    assert best(out, "token_int") == {key: " ".join(map(str, result.token_ids)) for key, result in expected.items()}
    assert read_scp(out / "utt2macs") == {key: str(result.macs) for key, result in expected.items()}


@pytest.mark.parametrize("how", ["configuration", "words"])
def test_a_search_is_that_of_the_recogniser(recipe, monkeypatch, capsys, how):
    search = {"kind": "beam", "beam": 4, "insertion": 2.5}
    (recipe / "decode_beam.yaml").write_text(yaml.safe_dump({"policy": "fixed", "search": search}))
    words = {
        "configuration": ("--config", f"{recipe}/decode_beam.yaml"),
        "words": ("--policy", "fixed", "--search", *(f"{key}={value}" for key, value in search.items())),
    }[how]
    asr = EarlyExitASR.from_files(recipe / "config.yaml", recipe / "model.pth", recipe / "decode_beam.yaml")
    expected = {key: asr.transcribe(recipe / f"{key}.wav").text for key in UTTERANCES}
    assert best(infer(recipe, monkeypatch, f"beam.{how}", *words)) == expected
    asr.use("fixed")
    assert expected != {key: asr.transcribe(recipe / f"{key}.wav").text for key in UTTERANCES}  # or nothing was tested


def test_an_utterance_without_a_text_keeps_its_line(recipe, monkeypatch, capsys):
    soundfile.write(recipe / "broken.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(recipe / "whole.wav", np.zeros(16000), 16000)
    (recipe / "two.scp").write_text(f"broken {recipe}/broken.wav\nwhole {recipe}/whole.wav\n")
    infer(recipe, monkeypatch, "failing", "--config", f"{recipe}/decode_ee.yaml", scp="two.scp")
    assert best(recipe / "failing")["broken"] == "" and "whole" in best(recipe / "failing")
    assert set(read_scp(recipe / "failing/utt2exit")) == {"whole"}
    assert "not finite" in read_scp(recipe / "failing/failed")["broken"]
    assert "1 utterances have no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        (("--policy", "entropy"), "'threshold' is missing", 2),
        (("--policy", "no_such.yaml"), "no_such.yaml: no such file", 1),
        (("--policy_conf", "threshold=1"), "settings of --policy", 2),
        (("--search", "kind=beam"), "--search: are settings of --policy", 2),
        (("--policy", "fixed", "--search", "kind=best"), "kind 'best' is unknown", 2),
        (("--policy", "fixed", "--search", "beam=4"), "beam is of no use without kind: beam", 2),
        (("--policy", "entropy", "--policy_conf", "threshold=-1"), "threshold -1: give a number from 0 on", 2),
        (("--policy", "fixed", "--policy_conf", "exit_layer=3"), "exit", 1),
        (("--policy", "fixed", "--lm_file", "lm.pth"), "run asr.sh with --use_lm false", 2),
        (("--policy", "fixed", "--nbest", "3"), "--nbest 3: has no place beside --policy", 2),
    ],
    ids=str,
)
def test_what_a_policy_cannot_have_is_one_line(recipe, monkeypatch, capsys, words, message, status):
    with pytest.raises(SystemExit) as stopped:
        run(lambda: print(infer(recipe, monkeypatch, "refused", *words)))
    last = capsys.readouterr().err.splitlines()[-1]
    assert (message in last, stopped.value.code) == (True, status)


@pytest.mark.parametrize("words", [(), ("--policy", "fixed")], ids=str)
def test_parameters_that_no_training_wrote_are_one_line(recipe, monkeypatch, capsys, words):
    """asr.sh asks for the best accuracy, which a model without a decoder has not."""
    with pytest.raises(SystemExit):
        run(lambda: print(infer(recipe, monkeypatch, "refused", "--asr_model_file", f"{recipe}/valid.acc.ave.pth", *words)))
    last = capsys.readouterr().err.splitlines()[-1]
    assert "valid.acc.ave.pth: no such file; name one of model.pth (asr.sh: --inference_asr_model)" in last


def test_the_log_times_a_batch_once(caplog):
    """asr.sh adds up the time from every length to its text, and wants as many of the one as of the other."""
    timed = importlib.import_module("espnet_ee.espnet2")._timed
    with caplog.at_level(logging.INFO), timed({"a": np.zeros(3), "failed": np.zeros(2)}) as texts:
        logging.info("recognising")
        texts["a"] = "A B"
    lines = ["speech length: 3", "recognising", "best hypo: A B", "speech length: 2", "best hypo: "]
    assert [record.getMessage() for record in caplog.records] == lines
