"""Joint search at an exit is ESPnet's own; what it costs is counted; policies read the decoder online as in the replay."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from espnet2.bin.asr_inference import Speech2Text

from espnet_ee.compute import PREFIX_MACS
from espnet_ee.decode import attention_search
from espnet_ee.decode.journal import open_journal
from espnet_ee.decode.loop import recognise
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.encoder.counting import counter
from espnet_ee.errors import UserError
from espnet_ee.model.decoders import exit_decoders_of
from espnet_ee.policy.attending import AttentionConfig
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.decoder import DecoderPolicy, DecoderPosteriorPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.table import EvidenceRow, EvidenceTable, Utterance, macs_of_stop, read_table, write_table
from espnet_ee.score.grid import exits_of, make_grid, policy_outcome
from espnet_ee.store.export_stock import export_stock
from espnet_ee.store.model_card import Card
from espnet_ee.store.package import load_package, pack_model
from tests import tiny

LENGTHS = (8000, 5000, 12000, 6789, 700)
LAYERS = (1, 2, 4)
SEARCH = AttentionConfig(beam=3, ctc_weight=0.3)
KINDS = ("separate", "shared")
TEXT = {"token_type": "char", "bpemodel": None}  # what stock inference asks a configuration for


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(random.standard_normal(length) * 0.1).astype(np.float32) for length in LENGTHS]


def talkative(kind: str = "separate", seed: int = 0, **changes: Any) -> torch.nn.Module:
    """Heads and decoders that say different tokens: untrained ones say one for all."""
    made = tiny.model(seed, **{**tiny.attention(kind), **changes})
    torch.manual_seed(seed)
    for name, value in made.named_parameters():
        if name.endswith(("ctc_lo.weight", "output_layer.weight", "embed.0.weight")):
            torch.nn.init.normal_(value)
        if name.endswith("output_layer.bias"):
            torch.nn.init.constant_(value[made.eos :], -6.0)  # or the first thing that a decoder says is the end
        if name.endswith("ctc_lo.bias"):
            torch.nn.init.constant_(value[:1], -6.0)
    return made


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return talkative(request.param)


def config(policy: ExitPolicy | None = None, search: AttentionConfig = SEARCH) -> DecodingConfig:
    return DecodingConfig(policy, search=search)


@pytest.fixture(scope="module")
def whole(model: torch.nn.Module, speech: list[np.ndarray]) -> list[Any]:
    """Every exit of every utterance, searched alone."""
    session = TorchSession(model)
    return [recognise(session, config(), [samples], True)[0] for samples in speech]


@pytest.mark.parametrize("search", [SEARCH, AttentionConfig(5, 0.5), AttentionConfig(2, 0.0), AttentionConfig(3, 0.3, -4.0)])
def test_an_exit_is_what_a_stranger_gets_of_its_stock_export(
    tmp_path: Path, speech: list[np.ndarray], search: AttentionConfig
) -> None:
    made = talkative()
    files, said = tiny.save(tmp_path, made, **tiny.attention(), **TEXT), set()
    for layer in LAYERS:
        folder = export_stock(*files, layer, tmp_path / f"exit{layer}")
        stock = Speech2Text(
            folder / "config.yaml",
            folder / "model.pth",
            beam_size=search.beam,
            ctc_weight=search.ctc_weight,
            maxlenratio=search.maxlenratio,
        )
        assert type(stock.asr_model).__name__ == "ESPnetASRModel" and len(stock.asr_model.decoder.decoders) == 2
        session = TorchSession(made)
        for samples in speech[:4]:
            result = recognise(session, config(FixedExitPolicy(layer), search), [samples])[0]
            features = session.features(samples)[None]
            with torch.no_grad():  # on the exit's own frames: stock 202511's depend on padding
                hidden = next(
                    exit_.hs
                    for exit_ in made.encoder.iter_exits(features, torch.tensor([features.size(1)]))
                    if exit_.layer == layer
                )
                _, _, tokens, best = stock._decode_single_sample(hidden[0])[0]
            assert list(result.token_ids) == [token for token in tokens if token != made.eos]
            assert result.score == pytest.approx(float(best.score), rel=1e-5)
            assert result.evidence.decoder_log_prob == pytest.approx(
                float(best.scores["decoder"]) / (len(best.yseq) - 1), rel=1e-5
            )
            said.add(result.token_ids)
    assert len(said) > 3  # or the same was said of everything, and nothing was tested


def test_the_final_exit_is_what_stock_inference_says_of_the_model_itself(tmp_path: Path, speech: list[np.ndarray]) -> None:
    made = talkative()
    session = TorchSession(made)
    stock = Speech2Text(*export_files(made, tmp_path), beam_size=3, ctc_weight=0.3)
    assert torch.equal(stock.asr_model.decoder.output_layer.weight, made.decoder.output_layer.weight)
    for samples in speech[:3]:
        text, _, _, best = stock(samples)[0]
        result = recognise(session, config(), [samples])[0]
        assert result.text == " ".join(text.split()) and result.score == pytest.approx(float(best.score), rel=1e-4)


def export_files(made: torch.nn.Module, folder: Path) -> tuple[Path, Path]:
    out = export_stock(*tiny.save(folder, made, **tiny.attention(), **TEXT), 4, folder / "exit4")
    return out / "config.yaml", out / "model.pth"


@pytest.mark.parametrize("ratio", [-50.0, 3.0])
def test_no_more_tokens_are_looked_for_than_there_are_frames(speech: list[np.ndarray], ratio: float) -> None:
    """CTC has no longer prefixes: ESPnet's search ends in an IndexError."""
    session = TorchSession(talkative())
    asked, most = (
        recognise(session, config(search=AttentionConfig(3, 0.3, value)), [speech[4]], True)[0] for value in (ratio, 1.0)
    )
    assert 0 < most.evidence.frames < 50 and [row.evidence.decoder_scores for row in asked.rows if row.evidence.decoder_scores]
    assert (asked.token_ids, asked.score) == (most.token_ids, most.score)


def test_the_batch_does_not_matter(model: torch.nn.Module, speech: list[np.ndarray], whole: list[Any]) -> None:
    together = recognise(TorchSession(model), config(), speech, True)
    for alone, result in zip(whole, together, strict=True):
        assert (alone.text, alone.macs) == (result.text, result.macs)
        for row, other in zip(alone.rows, result.rows, strict=True):
            assert (row.hypothesis, row.decoder_macs) == (other.hypothesis, other.decoder_macs)
            assert row.evidence.decoder_log_prob == pytest.approx(other.evidence.decoder_log_prob, rel=1e-4)
            assert row.evidence.decoder_scores == pytest.approx(other.evidence.decoder_scores, rel=1e-4)
    assert len({row.hypothesis for result in together for row in result.rows}) > 5


@pytest.mark.parametrize("layer", LAYERS)
def test_stopping_computes_no_block_and_no_decoder_above(model: torch.nn.Module, speech: list[np.ndarray], layer: int) -> None:
    called: list[str] = []
    names = {id(part): name for name, part in model.named_modules()}
    hooks = [
        part.register_forward_hook(lambda part, *_: called.append(names[id(part)]))
        for part in (
            *model.encoder.encoders,
            *(d.decoders[0] for d in {id(d): d for d in exit_decoders_of(model).values()}.values()),
        )
    ]
    try:
        recognise(TorchSession(model), config(FixedExitPolicy(layer)), speech[:1])
    finally:
        for hook in hooks:
            hook.remove()
    blocks = {name for name in called if name.startswith("encoder.")}
    decoders = {name for name in called if not name.startswith("encoder.")}
    assert blocks == {f"encoder.encoders.{number}" for number in range(layer)}
    assert decoders == {names[id(exit_decoders_of(model)[layer].decoders[0])]}


def test_a_search_costs_what_its_steps_compute(
    monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module, speech: list[np.ndarray]
) -> None:
    """The matrix products as torch counts them, during a whole search."""
    spent, batch_score = [0], attention_search.CountedDecoder.batch_score

    def counted(self: Any, ys: torch.Tensor, states: list[Any], xs: torch.Tensor) -> Any:
        with counter() as macs:
            result = batch_score(self, ys, states, xs)
            spent[0] += macs() + len(ys) * xs.size(1) * PREFIX_MACS * 4  # of four tokens CTC is asked: 1.5 times the beam
        return result

    monkeypatch.setattr(attention_search.CountedDecoder, "batch_score", counted)
    session = TorchSession(model)
    for samples in speech[:2]:
        spent[0] = 0
        row = recognise(session, config(FixedExitPolicy(2)), [samples])[0].rows[-1]
        assert row.decoder_macs == spent[0] > 0


@pytest.mark.parametrize(
    "policy",
    [
        DecoderPolicy(0.3),
        DecoderPolicy(0.0),
        DecoderPolicy(1.0),
        DecoderPosteriorPolicy(0.6),
        EntropyPolicy(0.2),
        FixedExitPolicy(2),
        None,
    ],
    ids=str,
)
def test_online_is_the_replay(
    tmp_path: Path, model: torch.nn.Module, speech: list[np.ndarray], whole: list[Any], policy: ExitPolicy | None
) -> None:
    if isinstance(policy, (DecoderPolicy, DecoderPosteriorPolicy, EntropyPolicy)) and policy.threshold not in (0.0, 1.0):
        levels = [policy.level([row.evidence]) for result in whole for row in result.rows[:-1]]
        policy = type(policy)(float(np.median(levels)))
    write_table(tmp_path / "evidence.tsv", table(whole))
    grid = make_grid("test", read_table(tmp_path / "evidence.tsv"), dict.fromkeys(table(whole).utterances, "A B"))
    applied = config(policy).policy_for(LAYERS)
    exits = exits_of(grid, applied)
    replay = policy_outcome(grid, exits, applied)
    online = recognise(TorchSession(model), config(policy), speech)
    assert [result.exit_layer for result in online] == [LAYERS[index] for index in exits]
    assert [result.text for result in online] == [one.rows[index].hypothesis for one, index in zip(whole, exits, strict=True)]
    assert [result.macs for result in online] == replay.macs.tolist()
    for result, one, index in zip(online, whole, exits, strict=True):
        assert result.macs == macs_of_stop(one.rows, index, applied.needs_every_exit, applied.needs_every_search)


def table(results: list[Any]) -> EvidenceTable:
    return EvidenceTable(LAYERS, {f"utt{n}": Utterance(1.0, result.rows) for n, result in enumerate(results)})


def test_what_the_decoder_says_is_kept_bit_by_bit(tmp_path: Path, whole: list[Any]) -> None:
    write_table(tmp_path / "evidence.tsv", table(whole))
    read = read_table(tmp_path / "evidence.tsv")
    rows = [row for utterance in read.utterances.values() for row in utterance.rows]
    assert known(rows) == known([row for result in whole for row in result.rows])
    assert all(
        row.decoder_macs > 0 and row.evidence.decoder_log_prob <= 0 and len(row.evidence.decoder_scores) == 3 for row in rows
    )
    with open_journal(tmp_path / "set", {"a": 1}) as journal:
        journal.add({"utt": whole[0]}, 1.0)
        lines = (tmp_path / ".set.journal").read_text().splitlines()
        journal.read(lines[-1])
    kept = journal.results["utt"]
    assert known(kept.rows) == known(whole[0].rows) and replace(kept, rows=()) == replace(whole[0], rows=())


def known(rows: Sequence[EvidenceRow]) -> list[EvidenceRow]:
    """Without the number that no model here has (NaN equals nothing) and those of words, which a table rounds."""
    return [replace(row, confidences=(), evidence=replace(row.evidence, cluster_entropy=0.0)) for row in rows]


def test_a_table_without_decoders_has_no_column_of_them(
    tmp_path: Path, model: torch.nn.Module, speech: list[np.ndarray]
) -> None:
    plain = [recognise(TorchSession(model), DecodingConfig(), [samples], True)[0] for samples in speech]
    write_table(tmp_path / "evidence.tsv", table(plain))
    assert "decoder" not in (tmp_path / "evidence.tsv").read_text().splitlines()[0]
    grid = make_grid("test", read_table(tmp_path / "evidence.tsv"), dict.fromkeys(table(plain).utterances, "A B"))
    with pytest.raises(UserError, match="policy decoder: .*lacks what it reads.*kind=attention"):
        exits_of(grid, DecoderPolicy(0.5))


def test_nothing_known_stops_nobody() -> None:
    from espnet_ee.policy.evidence import ExitEvidence

    for policy in (DecoderPolicy(0.0), DecoderPosteriorPolicy(0.0)):
        assert not policy.should_stop([ExitEvidence(1)])
    assert DecoderPolicy(0.5).level([ExitEvidence(1, decoder_log_prob=math.log(0.8))]) == pytest.approx(0.8)
    known = ExitEvidence(1, decoder_scores=(math.log(0.6), math.log(0.2)))
    assert DecoderPosteriorPolicy(0.5).level([known]) == pytest.approx(0.75)


def test_a_model_whose_numbers_are_broken_says_so(speech: list[np.ndarray]) -> None:
    made = talkative()
    torch.nn.init.constant_(made.encoder.encoders[0].norm_ff.weight, math.nan)
    for policy in (None, DecoderPolicy(0.0)):
        with pytest.raises(UserError, match="is not a number"):
            recognise(TorchSession(made), config(policy), speech[:1])


def test_words_have_times(model: torch.nn.Module, speech: list[np.ndarray]) -> None:
    session = TorchSession(model, 16000)
    for samples in speech:
        result = recognise(session, config(), [samples])[0]
        assert not result.words or " ".join(word.text for word in result.words) == result.text
        assert all(0 <= word.start <= word.end <= len(samples) / 16000 for word in result.words)


def test_a_package_brings_decoders_and_their_search(tmp_path: Path, model: torch.nn.Module, speech: list[np.ndarray]) -> None:
    kind = "separate" if len(model.exit_decoders) else "shared"
    files = tiny.save(tmp_path, model, **tiny.attention(kind))
    path = tmp_path / "decode_sure.yaml"
    path.write_text("policy: decoder\npolicy_conf: {threshold: 0.4}\nsearch: {kind: attention, beam: 3}\n")
    package = load_package(pack_model(*files, tmp_path / "package", Card("tiny", "nothing", "none"), [path]))
    assert package.configs[package.default] == config(DecoderPolicy(0.4))
    session, loaded = TorchSession(model), TorchSession(package.model)
    for samples in speech:
        ours, theirs = (recognise(one, package.configs[package.default], [samples])[0] for one in (session, loaded))
        assert (ours.text, ours.exit_layer, ours.macs) == (theirs.text, theirs.exit_layer, theirs.macs)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"kind": "attention", "ctc_weight": 1.0}, "ctc_weight is 1.0.*kind: beam"),
        ({"kind": "attention", "ctc_weight": "much"}, "ctc_weight is 'much'"),
        ({"kind": "attention", "beam": 0}, "beam is 0"),
        ({"kind": "attention", "beam": True}, "beam is True"),
        ({"kind": "attention", "maxlenratio": -0.5}, "maxlenratio is -0.5"),
        ({"kind": "attention", "maxlenratio": math.inf}, "maxlenratio is inf"),
        ({"kind": "attention", "lm": "a.arpa"}, "unknown key 'lm' of kind attention"),
    ],
)
def test_wrong_settings_are_one_line(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"decode.yaml: search: .*{message}"):
        DecodingConfig.from_mapping({"search": mapping}, "decode.yaml")


def test_a_search_is_read_back() -> None:
    for search in (SEARCH, AttentionConfig()):
        decoding = config(DecoderPolicy(0.5), search)
        assert DecodingConfig.from_mapping(json.loads(json.dumps(decoding.to_mapping())), "x") == decoding


def test_decoders_that_are_not_there_are_said(speech: list[np.ndarray]) -> None:
    with pytest.raises(UserError, match="no attention decoders; search with kind: greedy"):
        recognise(TorchSession(tiny.model()), config(), speech[:1])
    with pytest.raises(UserError, match="policy decoder reads .*kind: attention"):
        DecodingConfig(DecoderPolicy(0.5)).policy_for(LAYERS)
    with pytest.raises(UserError, match="hotwords have no place"):
        SEARCH.with_hotwords(["A"])
    with pytest.raises(UserError, match="attention decoders"):
        tiny.asr(tiny.model(), config())
