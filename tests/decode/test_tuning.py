"""A language model's weight, tuned on the development set; and all that is decoded with it afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from espnet_ee.decode.selection import decode_sets
from espnet_ee.decode.tuning import Trial, Tuning
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import read_yaml
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.table import read_table
from espnet_ee.score.experiment import ScoreOptions, score_experiment
from espnet_ee.score.wer import ErrorCounts
from tests import tiny
from tests.decode.test_selection import corpus, load, options, session  # noqa: F401

GRID = {"lm_weights": (0.0, 0.8), "insertions": (0.0, 0.5)}


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    """A language model of the tiny model's tokens that has one favourite."""
    words = ["<s>", "</s>", "<unk>", *(token for token in tiny.TOKENS if not token.startswith("<") or token == "<space>")]
    lines = [f"{-0.3 if word == words[3] else -1.5}\t{word}" for word in words]
    head = ["\\data\\", f"ngram 1={len(words)}", "ngram 2=1", "", "\\1-grams:", *lines, "", "\\2-grams:", "-0.5\t<s> A"]
    (tmp_path / "lm.arpa").write_text("\n".join([*head, "", "\\end\\", ""]))
    return tmp_path / "lm.arpa"


def test_all_is_decoded_with_the_tuned_search_and_the_page_says_so(options, load, arpa, corpus) -> None:  # noqa: F811
    decode_sets(replace(options, tuning=Tuning(arpa, 4, **GRID)), load)
    out = options.out
    assert {path.name for path in (out / "lm").iterdir()} == {"lm.arpa", "decode_lm.yaml", "tuning.yaml"}
    assert (out / "lm" / "lm.arpa").read_bytes() == arpa.read_bytes()
    tuned = DecodingConfig.read(out / "lm" / "decode_lm.yaml").search
    table = read_yaml(out / "lm" / "tuning.yaml", "")["weight_insertion_wer_cer"]
    assert [row[:2] for row in table] == [[weight, more] for weight in GRID["lm_weights"] for more in GRID["insertions"]]
    best = min(table, key=lambda row: (row[2], row[3], row[0], row[1]))
    assert (tuned.kind, tuned.beam, tuned.lm_weight, tuned.insertion) == ("beam", 4, *best[:2])
    # The calibrated configurations name it from where they lie, and what ran online is the replay of every exit with the same search.
    for path in (out / "policies").glob("decode_*.yaml"):
        config = DecodingConfig.read(path)
        assert yaml.safe_load(path.read_text())["search"]["lm"] == "../lm/lm.arpa"
        assert Path(config.search.lm).resolve() == (out / "lm" / "lm.arpa").resolve()
        assert replace(config.search, lm=None) == replace(tuned, lm=None)
    for path in out.glob("*/*/decode.yaml"):
        assert read_yaml(path, "")["search"]["lm_weight"] == tuned.lm_weight
    page = score_experiment(ScoreOptions(out, corpus, "dev", ["test"]))
    assert page.environment["search"].startswith("beam 4, language model lm.arpa (weight ")
    assert all(check.count("same text") for result in page.sets for check in result.checks)


def test_the_evidence_is_of_the_search(options, load, arpa) -> None:  # noqa: F811
    decode_sets(options, load)
    greedy = read_table(options.out / "decode_every_exit/dev/evidence.tsv")
    decode_sets(replace(options, tuning=Tuning(arpa, 4, (0.8,), (0.5,))), load)
    searched = read_table(options.out / "decode_every_exit/dev/evidence.tsv")
    differing = 0
    for utterance in greedy.utterances:
        for one, other in zip(greedy.utterances[utterance].rows, searched.utterances[utterance].rows, strict=True):
            assert repr(one.evidence) == repr(other.evidence)  # what policies read is the frames', not the search's
            differing += one.hypothesis != other.hypothesis
    assert differing


def test_done_once_and_again_when_the_model_the_text_or_the_grid_changed(options, load, arpa, corpus) -> None:  # noqa: F811
    tuned = replace(options, tuning=Tuning(arpa, 4, **GRID))
    decode_sets(tuned, load)
    mark = (options.out / "lm" / "tuning.yaml").stat().st_mtime_ns
    decode_sets(tuned, load)
    assert load.count == 1 and (options.out / "lm" / "tuning.yaml").stat().st_mtime_ns == mark
    decode_sets(replace(tuned, tuning=Tuning(arpa, 4, (0.8,), (0.0,))), load)
    assert load.count == 2 and DecodingConfig.read(options.out / "lm" / "decode_lm.yaml").search.lm_weight == 0.8
    arpa.write_text(arpa.read_text().replace("-1.5", "-1.4"))
    decode_sets(replace(tuned, tuning=Tuning(arpa, 4, (0.8,), (0.0,))), load)
    assert load.count == 3 and "-1.4" in (options.out / "lm" / "lm.arpa").read_text()


def test_a_run_by_another_search_is_compared_by_exits_alone(options, load, arpa, corpus) -> None:  # noqa: F811
    decode_sets(options, load)
    config = DecodingConfig.read(options.out / "policies" / "decode_entropy_mean_layer2.yaml")
    search = DecodingConfig.from_mapping(
        {"search": {"kind": "beam", "lm": str(arpa), "lm_weight": 0.8, "insertion": 2.0}}, "x"
    ).search
    decode_sets(replace(options, configs={"decode_with_lm": replace(config, search=search)}), load)
    page = score_experiment(ScoreOptions(options.out, corpus, "dev", ["test"]))
    [check] = [check for check in page.sets[0].checks if check.startswith("with_lm")]
    assert "yes" in check and "the text of another search, beam 10, language model lm.arpa (weight 0.8), +2 a token" in check
    texts = [
        read_scp(options.out / tag / "test/text", allow_empty=True) for tag in ("decode_with_lm", "decode_entropy_mean_layer2")
    ]
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"calibration": None, "every_exit": True}, UsageError, "--calibrate_on"),
        ({"tuning": Tuning(Path("nowhere.arpa"))}, UserError, "nowhere.arpa: no such language model"),
        ({"tuning": Tuning(Path("nowhere.arpa"), lm_weights=())}, UserError, "at least one number"),
        ({"tuning": Tuning(Path("nowhere.arpa"), beam=0)}, UserError, "beam is 0"),
    ],
)
def test_mistakes_are_said_before_the_model_is_loaded(options, load, arpa, changes, error, message) -> None:  # noqa: F811
    with pytest.raises(error, match=message):
        decode_sets(replace(options, **{"tuning": Tuning(arpa), **changes}), load)
    assert load.count == 0


def test_a_language_model_of_other_tokens_is_said_before_anything_is_decoded(options, load, arpa, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr("espnet_ee.decode.tuning.decode", lambda *_: pytest.fail("decoded"))
    text = arpa.read_text()
    for letter in "ABC":
        text = text.replace(f"\t{letter}\n", f"\tX{letter}\n").replace(f"<s> {letter}", f"<s> X{letter}")
    arpa.write_text(text)
    with pytest.raises(UserError, match="lacks 3 .*of other units"):
        decode_sets(replace(options, tuning=Tuning(arpa)), load)


def test_somebodys_folder_stays(options, load, arpa) -> None:  # noqa: F811
    (options.out / "lm").mkdir(parents=True)
    (options.out / "lm" / "mine").write_text("x")
    with pytest.raises(UserError, match="was not made by this command"):
        decode_sets(replace(options, tuning=Tuning(arpa)), load)


def test_of_equals_what_changes_least_is_best() -> None:
    def trial(weight: float, insertion: float, words: int, characters: int) -> Trial:
        return Trial(weight, insertion, ErrorCounts(substitutions=words), ErrorCounts(substitutions=characters))

    trials = [trial(0.5, 0.0, 3, 9), trial(0.3, 1.0, 3, 8), trial(0.3, 0.5, 3, 8), trial(0.7, 0.0, 3, 8), trial(0.1, 0.0, 4, 1)]
    best = min(trials, key=lambda one: one.rank)
    assert (best.weight, best.insertion) == (0.3, 0.5)
