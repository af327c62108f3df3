"""The decoding configuration: what is written is read back, and what is wrong is named with its key."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from espnet_ee.errors import UsageError, UserError
from espnet_ee.policy.decoding import DecodingConfig, search_of_words
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.learned import LearnedPolicy
from espnet_ee.policy.posterior import PosteriorPolicy
from espnet_ee.policy.searching import SearchConfig

LEARNED = LearnedPolicy(0.25, {"log_entropy": 1.5, "changed_tokens": -0.1}, {2: 0.5, 4: 0.1}, {2: 0.1, 4: 0.0})


@pytest.mark.parametrize(
    "config",
    [
        DecodingConfig(),
        DecodingConfig(FixedExitPolicy(4), batch_size=8),
        DecodingConfig(EntropyPolicy(float("inf")), num_threads=2),
        DecodingConfig(PosteriorPolicy(0.5, nbest=4)),
        DecodingConfig(LEARNED, 3, 5),
    ],
)
def test_what_is_written_is_read_back(config: DecodingConfig, tmp_path: Path) -> None:
    path = tmp_path / "decode.yaml"
    path.write_text(yaml.safe_dump(config.to_mapping()), encoding="utf-8")
    assert DecodingConfig.read(path) == config


@pytest.mark.parametrize("text", ["", "policy:\n", "policy: fixed\npolicy_conf:\n", "policy: fixed", "batch_size: 1"])
def test_nothing_said_is_the_final_exit(text: str, tmp_path: Path) -> None:
    (tmp_path / "decode.yaml").write_text(text, encoding="utf-8")
    config = DecodingConfig.read(tmp_path / "decode.yaml")
    assert config == DecodingConfig()
    assert config.policy_for((2, 4, 6)) == FixedExitPolicy(6)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("polcy: entropy", "polcy"),
        ("policy: [entropy]", "entropy"),
        ("policy: entropy", "threshold"),
        ("policy: entropy\npolicy_conf: 0.1", "policy_conf"),
        ("policy: entropy\npolicy_conf: {treshold: 1}", "treshold"),
        ("policy_conf: {threshold: 1}", "policy_conf"),
        ("batch_size: 0", "batch_size"),
        ("batch_size: many", "batch_size"),
        ("num_threads: true", "num_threads"),
        ("num_threads: 1.5", "num_threads"),
        ("combine: {1: {1: 1.0}}", "combine"),
        ("3: 4", "3"),
        ("- 3", "key: value"),
        ("policy: confidence\npolicy_conf: {threshold: 95}", "threshold 95: give a number from 0 to 1"),
        ("policy: patience\npolicy_conf: {threshold: 2.5}", "threshold 2.5: give a whole number"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(text: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "decode.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"decode\.yaml: (?s:.)*{key}") as caught:
        DecodingConfig.read(tmp_path / "decode.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("policy: entropy\npolicy_conf: {threshold: 0.1}\npolicy: fixed", 3, "the key 'policy' is there twice"),
        ("policy: entropy\npolicy_conf: {threshold: 0.1, threshold: 0.2}", 2, "the key 'threshold' is there twice"),
        ("search: {kind: beam, hotwords: {A: 1, B: 2, A: 3}}", 1, "the key 'A' is there twice"),
        ("policy: entropy\npolicy_conf:\n\tthreshold: 0.1", 3, "a tab"),
        ("policy_conf: {threshold: 0.1\n", 2, "not plain YAML"),
    ],
)
def test_what_yaml_readers_pass_over_is_named_with_its_line(text: str, line: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "decode.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"decode\.yaml:{line}: .*{message}"):
        DecodingConfig.read(tmp_path / "decode.yaml")


def test_a_configuration_in_another_writing_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "decode.yaml").write_text("policy: fixed", encoding="utf-16")
    with pytest.raises(UserError, match="not UTF-8.*iconv"):
        DecodingConfig.read(tmp_path / "decode.yaml")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DecodingConfig("entropy"), "policy is 'entropy'"),
        (lambda: DecodingConfig(search="beam"), "search is 'beam'"),
        (lambda: EntropyPolicy("0.1"), "threshold is not a number"),
        (lambda: EntropyPolicy(True), "threshold is not a number"),
    ],
)
def test_words_in_place_of_objects_are_refused_where_they_are_given(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_the_command_line_changes_single_settings() -> None:
    config = DecodingConfig(PosteriorPolicy(0.5, nbest=4), batch_size=8)
    assert config.changed() == config
    assert config.changed(None, {"threshold": "0.3"}, num_threads=2) == DecodingConfig(PosteriorPolicy(0.3, nbest=4), 8, 2)
    assert config.changed("entropy", {"threshold": "1e-3"}, batch_size=None) == DecodingConfig(EntropyPolicy(0.001), 8)
    assert config.changed("fixed") == DecodingConfig(batch_size=8)
    with pytest.raises(UsageError, match="nbest"):
        config.changed("entropy", {"threshold": 1, "nbest": 4})
    with pytest.raises(UsageError, match="threshold 90: give a number from 0 to 1"):
        config.changed(None, {"threshold": "90"})
    odd = DecodingConfig(PosteriorPolicy(2.0))  # whoever changes something else is told nothing of it
    assert odd.changed(None, {"nbest": 4}, batch_size=2) == DecodingConfig(PosteriorPolicy(2.0, nbest=4), 2)


@pytest.mark.parametrize("threshold", [".inf", "-.inf"])
def test_infinity_is_always_or_never(threshold: str, tmp_path: Path) -> None:
    (tmp_path / "decode.yaml").write_text(f"policy: confidence\npolicy_conf: {{threshold: {threshold}}}\n")
    assert abs(DecodingConfig.read(tmp_path / "decode.yaml").policy.threshold) == math.inf


def test_a_policy_is_checked_against_the_model() -> None:
    DecodingConfig(LEARNED).policy_for((2, 4, 6))
    for config in (DecodingConfig(LEARNED), DecodingConfig(FixedExitPolicy(6))):
        with pytest.raises(UserError, match=r"learned|fixed"):
            config.policy_for((2, 4))


def test_a_search_is_read_and_written_and_greedy_leaves_no_trace(tmp_path: Path) -> None:
    assert "search" not in DecodingConfig().to_mapping()
    assert DecodingConfig.from_mapping({"search": {"kind": "greedy"}}, "x") == DecodingConfig()
    (tmp_path / "decode.yaml").write_text("search: {kind: beam, beam: 5, lm: lm.arpa, lm_weight: 0.3, insertion: 1}\n")
    config = DecodingConfig.read(tmp_path / "decode.yaml")
    assert config.search == SearchConfig("beam", 5, str(tmp_path / "lm.arpa"), 0.3, 1)
    for search in (config.search, SearchConfig("beam", 3), SearchConfig("beam", 3, insertion=0.5)):
        whole = DecodingConfig(search=search)
        assert DecodingConfig.from_mapping(whole.to_mapping(), "x") == whole
    full = SearchConfig("beam", 3, "/lm.arpa", 0.2, 1.5, 20, 12.0, 0.99, (("ANNA", 3.0), ("NEW YORK", 4.5)))
    assert DecodingConfig.from_mapping(DecodingConfig(search=full).to_mapping(), "x").search == full


@pytest.mark.parametrize(
    "more", [{"blank_skip": 0.51}, {"blank_skip": 1}, {"width": 0.25}, {"hotwords": {"A": 100, "B": 0.01}}]
)
def test_the_ends_of_what_a_search_can_be_are_taken(more: dict[str, object]) -> None:
    search = SearchConfig.from_mapping({"kind": "beam", **more})
    assert SearchConfig.from_mapping(search.to_mapping()) == search


def test_a_word_that_yaml_cannot_take_is_the_command_lines_mistake() -> None:
    with pytest.raises(UsageError, match="--search: month must be in"):
        search_of_words(["lm=2020-13-01"], "--search")


def test_a_search_is_said_in_a_few_words() -> None:
    hotwords = (("A", 1.0), ("B", 2.0))
    search = SearchConfig("beam", 3, "/x/lm.arpa", 0.25, -1.5, blank_skip=0.99, hotwords=hotwords, lexicon="/x/w.txt")
    assert str(search) == (
        "beam 3, language model lm.arpa (weight 0.25), -1.5 a token, blank frames from 0.99 on skipped, words of w.txt alone, 2 hotwords"
    )
    assert (str(SearchConfig("beam", 4)), str(SearchConfig())) == ("beam 4", "greedy")


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("beam", "search is 'beam'"),
        ({"kind": "best"}, "kind 'best' is unknown"),
        ({"kind": "beam", "wide": 3}, "unknown key 'wide'"),
        ({"kind": "beam", "width": 0}, "width is 0"),
        ({"kind": "beam", "width": 10**400}, "width is 1000"),  # more than a float can hold
        ({"kind": "beam", "tokens": 0}, "tokens is 0"),
        *(({"kind": "beam", "blank_skip": share}, f"blank_skip is {share}") for share in (0.3, 0.5, 1.01)),
        ({"kind": "beam", "blank_skip": True}, "blank_skip is True"),
        ({"kind": "beam", "hotwords": "ANNA"}, "hotwords are a list"),
        ({"kind": "beam", "hotwords": [1, "A"]}, "the hotword 1 is no word"),
        ({"kind": "beam", "hotwords": ["A", False]}, "the hotword False is no word; .*in quotes"),  # NO, to YAML
        *(({"kind": "beam", "hotwords": words}, "hotwords are a list") for words in ([["A"]], ["A", ["B"]], ["A", {"B": 3}])),
        ({"kind": "beam", "hotwords": {True: 2}}, "the hotword True is no word"),
        ({"kind": "beam", "hotwords": {" ": 2}}, "the hotword ' ' is no word"),
        *(({"kind": "beam", "hotwords": {"A": boost}}, f"the boost of the hotword 'A' is {boost}") for boost in (-1, 0, 100.5)),
        ({"kind": "beam", "hotwords": {"A": "x"}}, "the boost of the hotword 'A' is 'x'"),
        ({"kind": "beam", "hotwords": ["A"], "hotword_boost": 1e9}, "the boost of the hotword 'A' is 1000000000"),
        ({"kind": "beam", "hotword_boost": 3}, "hotword_boost is of no use without hotwords"),
        ({"hotwords": ["A"]}, "no use without kind: beam"),
        ({"kind": "beam", "beam": 0}, "beam is 0"),
        ({"kind": "beam", "beam": "ten"}, "beam is 'ten'"),
        ({"kind": "beam", "lm": 3}, "lm is 3"),
        *(
            ({"kind": "beam", key: value}, f"{key} is {value!r}")
            for key in ("insertion", "width")
            for value in ("x", math.nan, math.inf)
        ),
        ({"beam": 10}, "no use without kind: beam"),
        ({"kind": "beam", "lm_weight": 0.5}, "no use without an lm"),
    ],
)
def test_a_search_that_cannot_be_is_named(search: object, message: str) -> None:
    with pytest.raises(UserError, match=f"decode.yaml: .*{message}"):
        DecodingConfig.from_mapping({"search": search}, "decode.yaml")


def test_a_shift_of_words_is_kept_and_checked() -> None:
    config = DecodingConfig.from_mapping({"word_shift": [-0.12, 0]}, "decode.yaml")
    assert config.word_shift == (-0.12, 0) and "word_shift" not in DecodingConfig().to_mapping()
    for written in (config.to_mapping(), yaml.safe_load(config.to_yaml())):
        assert DecodingConfig.from_mapping(written, "x") == config
    for broken in (0.1, "ab", [1, 2, 3], [True, 0], [0, 1], [-1, 0], [0, math.nan], [], {}):
        with pytest.raises(UserError, match=r"decode\.yaml: word_shift is .*two numbers"):
            DecodingConfig.from_mapping({"word_shift": broken}, "decode.yaml")


def test_the_exit_of_words_times_is_kept_and_checked() -> None:
    config = DecodingConfig.from_mapping({"word_exit": 2}, "decode.yaml")
    assert config.word_exit == 2 and DecodingConfig.from_mapping(config.to_mapping(), "x") == config
    assert "word_exit" not in DecodingConfig().to_mapping() and config.changed(batch_size=2).word_exit == 2
    for broken in (0, -2, 2.0, True, "2", [2]):
        with pytest.raises(UserError, match=r"decode\.yaml: word_exit is .*whole number"):
            DecodingConfig.from_mapping({"word_exit": broken}, "decode.yaml")
