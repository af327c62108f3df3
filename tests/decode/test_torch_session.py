"""The recogniser stops where the policy says, computes nothing above, and does not see the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.errors import UserError
from espnet_ee.model.heads import mac_table
from espnet_ee.policy.base import choose_exit
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.table import macs_of_stop
from espnet_ee.store.checkpoint import load_model
from tests import tiny


@pytest.fixture(scope="module")
def evidence(model, speech):
    """All exits of all utterances, decoded alone."""
    return tiny.every_exit(model, speech)


@pytest.fixture(scope="module")
def thresholds(evidence) -> list[float]:
    """Thresholds between which utterances stop at different exits."""
    values = sorted(row.evidence.entropy for result in evidence for row in result.rows)
    return [float(np.quantile(values, q)) + 1e-6 for q in (0.1, 0.3, 0.5, 0.7, 0.9)]


def test_the_thresholds_spread_the_utterances(model, speech, evidence, thresholds):
    spread = {choose_exit(EntropyPolicy(thresholds[2]), [row.evidence for row in r.rows]) for r in evidence}
    assert len(spread) > 1, "the fixtures must exercise stopping at different exits"


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_text_and_exit_do_not_depend_on_the_batch(model, speech, thresholds, batch_size):
    for threshold in thresholds:
        recogniser = tiny.asr(model, EntropyPolicy(threshold))
        alone = [recogniser.recognise([samples])[0] for samples in speech]
        batched = []
        for start in range(0, len(speech), batch_size):
            batched += recogniser.recognise(speech[start : start + batch_size])
        assert [(r.exit_layer, r.text, r.tokens, r.macs) for r in batched] == [
            (r.exit_layer, r.text, r.tokens, r.macs) for r in alone
        ]
        for one, other in zip(batched, alone, strict=True):
            assert one.evidence.entropy == pytest.approx(other.evidence.entropy, abs=1e-6)


def test_the_online_run_is_the_replay(model, speech, evidence, thresholds):
    for threshold in thresholds:
        policy = EntropyPolicy(threshold)
        for result, whole in zip(tiny.asr(model, policy).recognise(speech), evidence, strict=True):
            index = choose_exit(policy, [row.evidence for row in whole.rows])
            assert result.exit_layer == whole.rows[index].evidence.layer
            assert result.text == whole.rows[index].hypothesis
            assert result.macs == macs_of_stop(whole.rows, index, needs_every_exit=True)


def count_blocks(model: torch.nn.Module) -> tuple[list[tuple[int, int]], list]:
    """Hooks that note (block, batch rows) of every block that runs."""
    ran: list[tuple[int, int]] = []
    hooks = [
        block.register_forward_hook(lambda _, inputs, __, number=number: ran.append((number, inputs[0][0].size(0))))
        for number, block in enumerate(model.encoder.encoders, 1)
    ]
    return ran, hooks


@pytest.mark.parametrize("exit_layer", [1, 2, 4])
def test_no_block_above_a_fixed_exit_runs_and_only_its_head_is_read(model, speech, exit_layer):
    ran, hooks = count_blocks(model)
    read = []
    linear = {1: model.exit_ctc["1"].ctc_lo, 2: model.exit_ctc["2"].ctc_lo, 4: model.ctc.ctc_lo}
    hooks += [part.register_forward_hook(lambda *_, layer=layer: read.append(layer)) for layer, part in linear.items()]
    result = tiny.asr(model, FixedExitPolicy(exit_layer)).recognise(speech[:1])[0]
    for hook in hooks:
        hook.remove()
    assert [number for number, _ in ran] == list(range(1, exit_layer + 1))
    assert read == [exit_layer]
    assert result.exit_layer == exit_layer
    table = mac_table(model)
    frames = result.evidence.frames
    assert result.macs - table.head_macs(exit_layer, frames) == result.rows[0].encoder_macs


def test_finished_utterances_leave_the_batch(model, speech, evidence, thresholds):
    policy = EntropyPolicy(thresholds[2])
    exits = [choose_exit(policy, [row.evidence for row in whole.rows]) for whole in evidence]
    ran, hooks = count_blocks(model)
    tiny.asr(model, policy).recognise(speech)
    for hook in hooks:
        hook.remove()
    expected = [(1, 16), (2, sum(e >= 1 for e in exits)), (3, sum(e >= 2 for e in exits)), (4, sum(e >= 2 for e in exits))]
    assert ran == [(number, rows) for number, rows in expected if rows]


@given(first=st.floats(0, 0.4), second=st.floats(0, 0.4))
@settings(max_examples=50, deadline=None)
def test_mean_depth_is_monotone_in_the_threshold(evidence, first, second):
    low, high = sorted((first, second))

    def depth(threshold: float) -> float:
        exits = [
            whole.rows[choose_exit(EntropyPolicy(threshold), [row.evidence for row in whole.rows])].evidence.layer
            for whole in evidence
        ]
        return sum(exits) / len(exits)

    assert depth(low) >= depth(high)


@pytest.mark.parametrize(("threshold", "layer"), [(0.0, 4), (float("inf"), 1)])
def test_extreme_thresholds_give_the_last_and_the_first_exit(model, speech, threshold, layer):
    recogniser = tiny.asr(model, EntropyPolicy(threshold))
    assert {result.exit_layer for result in recogniser.recognise(speech)} == {layer}


@pytest.mark.parametrize("samples", [1, 2, 160, 500, 60 * 16000])
def test_very_short_and_long_audio_and_silence(model, samples):
    recogniser = tiny.asr(model, EntropyPolicy(0.01))
    for audio in (np.zeros(samples, np.float32), np.full(samples, 0.1, np.float32)):
        result = recogniser.recognise([audio])[0]
        assert result.evidence.frames >= 1
        assert result.exit_layer in (1, 2, 4)


def test_no_samples_is_an_error(model):
    with pytest.raises(UserError, match="without samples"):
        tiny.asr(model, EntropyPolicy(0.01)).recognise([np.zeros(0, np.float32)])


def test_an_exit_the_model_lacks_is_an_error(model):
    with pytest.raises(UserError, match="no exit after layer 3"):
        tiny.asr(model, FixedExitPolicy(3))


def test_stock_model_with_shared_head_is_recognised(speech):
    stock = tiny.model(encoder_conf={**tiny.CONFORMER, "exit_layers": [2, 4]}, model="espnet", model_conf={"ctc_weight": 1.0})
    result = tiny.asr(stock, FixedExitPolicy(2)).recognise(speech[:2])
    assert [r.exit_layer for r in result] == [2, 2]


def test_evidence_is_the_papers_formula():
    """xi = -1/(T V) sum p log p over real frames, whatever the padding holds."""
    torch.manual_seed(0)
    log_probs = torch.randn(2, 9, 5).log_softmax(-1)
    log_probs[1, 4:] = float("nan")
    whole, short = tiny.evidence(2, log_probs, [9, 4])
    p = log_probs[1, :4].double().exp()
    assert short.entropy == pytest.approx(float(-(p * p.log()).sum() / (4 * 5)), rel=1e-6)
    assert short.confidence == pytest.approx(float(p.max(-1).values.mean()), rel=1e-6)
    assert short.blank_share == pytest.approx((p.argmax(-1) == 0).double().mean().item())
    assert short.score == pytest.approx(float(p.max(-1).values.log().sum()), rel=1e-6)
    assert (whole.layer, whole.frames, short.frames) == (2, 9, 4)


def test_certain_frames_have_no_entropy():
    """p = 0 must not make 0 * -inf = NaN of a certain frame."""
    log_probs = torch.full((1, 3, 4), float("-inf"))
    log_probs[..., 1] = 0.0
    [evidence] = tiny.evidence(1, log_probs, [3])
    assert evidence.entropy == 0.0
    assert evidence.tokens == (1,)


def test_no_frames_is_evidence_of_nothing():
    [evidence] = tiny.evidence(1, torch.randn(1, 3, 4), [0])
    assert evidence.frames == 0
    assert np.isnan(evidence.entropy)
    assert not EntropyPolicy(float("inf")).should_stop([evidence])


def test_features_for_a_model_of_audio_and_the_reverse_are_refused(model):
    recogniser = tiny.asr(model, FixedExitPolicy(4))
    with pytest.raises(UserError, match="the model takes audio"):
        recogniser.recognise([np.zeros((400, 80), np.float32)])
    with pytest.raises(UserError, match="list of utterances"):
        recogniser.recognise(np.zeros(16000, np.float32))
    with pytest.raises(UserError, match="not finite"):
        recogniser.recognise([np.full(16000, np.nan, np.float32)])
    with pytest.raises(UserError, match=r"floats up to 3000 are not in \[-1, 1\]"):
        recogniser.recognise([np.full(16000, -3000, np.float32)])
    extracted = tiny.asr(tiny.model(frontend=None, input_size=80), FixedExitPolicy(4))
    assert extracted.recognise([np.zeros((400, 80), np.float32)])[0].exit_layer == 4
    for array in (np.zeros(16000, np.float32), np.zeros((400, 40), np.float32)):
        with pytest.raises(UserError, match="features of 80 dimensions"):
            extracted.recognise([array])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"preencoder": "linear", "preencoder_conf": {"input_size": 40, "output_size": 80, "dropout": 0.0}},
            "input_size is 40",
        ),
        ({"model_conf": {"ctc_weight": 0.0}, "decoder": "transformer"}, "no CTC head"),
    ],
)
def test_a_model_whose_exits_cannot_be_read_is_refused(changes, message):
    stock = {"model": "espnet", "model_conf": {"ctc_weight": 1.0}}
    with pytest.raises(UserError, match=message):
        tiny.asr(tiny.model(**{**stock, **changes}), FixedExitPolicy(4))


def test_the_entropy_of_a_certain_exit_is_not_negative():
    logits = torch.tensor([100.0, 80.0, 80.0]).repeat(1, 7, 1) + torch.arange(7)[None, :, None] * 3.3
    [evidence] = tiny.evidence(2, logits, [7])
    assert evidence.entropy >= 0 and not EntropyPolicy(0.0).should_stop([evidence])
    [broken] = tiny.evidence(2, logits * float("nan"), [7])
    assert np.isnan(broken.entropy)


def test_utterances_have_the_peak_that_the_training_gave_them(tmp_path):
    """ESPnet's preprocessor scales whole utterances, of an inference, too."""
    settings = {"normalize": None, "speech_volume_normalize": 0.7}
    model = tiny.model(seed=2, **settings)
    speech = (np.random.default_rng(0).standard_normal(16000) * 0.05).astype(np.float32)
    loaded = load_model(*tiny.save(tmp_path, model, **settings))
    scaled = tiny.every_exit(model, [speech * 0.7 / np.abs(speech).max()])
    entropy = [row.evidence.entropy for row in tiny.every_exit(loaded, [speech])[0].rows]
    assert entropy == [row.evidence.entropy for row in scaled[0].rows]
    assert entropy != [row.evidence.entropy for row in tiny.every_exit(model, [speech])[0].rows]  # or nothing was tested
    silence = np.zeros(16000, np.float32)
    off = load_model(*tiny.save(tmp_path, model, **settings, use_preprocessor=False))

    def evidence(of, samples):  # as text: what nobody made is nan, which equals nothing
        return repr(tiny.every_exit(of, [samples])[0].rows[0].evidence)

    assert evidence(loaded, silence) == evidence(model, silence)
    assert evidence(off, speech) == evidence(model, speech)
    with pytest.raises(UserError, match="speech_volume_normalize 'loud' is no peak"):
        load_model(*tiny.save(tmp_path, model, speech_volume_normalize="loud"))
