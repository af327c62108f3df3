"""Losses and error rates of every exit, and the identity with stock InterCTC."""

import argparse
import math

import jiwer
import pytest
import torch
from espnet2.tasks.asr import ASRTask
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.errors import UsageError
from espnet_ee.host.compat import espnet_version
from espnet_ee.model.loss import exit_weights, exits_ctc_loss, frames_needed
from espnet_ee.text import collapse, tokens_to_text
from tests import tiny

LABELS = torch.tensor([[3, 4, 5, 5], [3, 2, 4, -1], [5, -1, -1, -1]])
LABEL_LENGTHS = torch.tensor([4, 3, 1])


def batch(*lengths: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(3)
    return torch.randn(len(lengths), max(lengths)), torch.tensor(lengths), LABELS.clone(), LABEL_LENGTHS


def test_loss_of_each_exit_is_espnets_ctc_and_the_joint_loss_their_sum():
    model = tiny.model()
    speech, lengths, text, text_lengths = batch(16000, 12000, 9000)
    loss, stats, weight = model(speech, lengths, text, text_lengths)
    (final, below), olens = model.encode(speech, lengths)
    total = 0.0
    for layer, hs in [*below, (4, final)]:
        expected = model.head(layer)(hs, olens, text, text_lengths)
        torch.testing.assert_close(stats[f"loss_exit{layer:02d}"][0], expected)
        total += expected.item()
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert weight.item() == 3


def test_weights_scale_the_exits():
    mean = tiny.model(model_conf={"ctc_weight": 1.0, "exit_weights": "mean"})
    last = tiny.model(model_conf={"ctc_weight": 1.0, "exit_weights": [0, 0, 1]})
    inputs = batch(16000, 12000, 9000)
    summed, stats, _ = tiny.model()(*inputs)
    assert mean(*inputs)[0].item() == pytest.approx(summed.item() / 3, rel=1e-5)
    assert last(*inputs)[0].item() == pytest.approx(stats["loss_exit04"].item(), rel=1e-5)


def test_cer_counts_real_frames_only():
    model = tiny.model()
    speech, lengths, text, text_lengths = batch(16000, 12000, 9000)
    stats = model(speech, lengths, text, text_lengths)[1]
    (final, _), olens = model.encode(speech, lengths)
    hypotheses, references = [], []
    for row in range(3):
        path = model.log_probs(4, final[row : row + 1, : olens[row]])[0].argmax(-1).tolist()
        hypotheses.append(tokens_to_text([tiny.TOKENS[i] for i in collapse(path)]))
        references.append(tokens_to_text([tiny.TOKENS[i] for i in LABELS[row, : LABEL_LENGTHS[row]]]))
    assert stats["cer_exit04"].item() == pytest.approx(jiwer.cer(references, hypotheses))
    assert {"cer_exit01", "cer_exit02", "cer_exit04"} <= stats.keys()
    model.train()
    assert not [name for name in model(*batch(16000, 12000, 9000))[1] if name.startswith("cer")]


def test_separate_heads_are_separate_and_shared_ones_shared():
    separate, shared = tiny.model(), tiny.model(model_conf={"ctc_weight": 1.0, "exit_heads": "shared"})
    assert len({id(separate.head(layer)) for layer in (1, 2, 4)}) == 3
    assert {id(shared.head(layer)) for layer in (1, 2, 4)} == {id(shared.ctc)}
    assert separate.head(4) is separate.ctc


def test_every_exit_gets_gradient():
    model = tiny.model().train()
    model(*batch(16000, 12000, 9000))[0].backward()
    without = [name for name, value in model.named_parameters() if value.grad is None]
    assert without == []


def test_utterances_too_short_for_their_labels_are_counted():
    model = tiny.model()
    speech, lengths, text, text_lengths = batch(16000, 12000, 1300)
    text[2], text_lengths = torch.tensor([3, 3, 3, 3]), torch.tensor([4, 3, 4])
    stats = model(speech, lengths, text, text_lengths)[1]
    assert stats["ctc_too_short"].item() == pytest.approx(1 / 3)


@given(labels=st.lists(st.integers(1, 3), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_frames_needed_is_where_ctc_becomes_finite(labels):
    text, lengths = torch.tensor([[*labels, -1]]), torch.tensor([len(labels)])
    needed = int(frames_needed(text, lengths))
    for frames, finite in ((needed, True), (needed - 1, False)):
        log_probs = torch.zeros(frames, 1, 4).log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(log_probs, text[:, :-1], torch.tensor([frames]), lengths) if frames else None
        assert frames == 0 or math.isfinite(loss.item()) is finite


def test_batched_ctc_equals_one_call_per_exit():
    torch.manual_seed(0)
    log_probs = torch.randn(3, 2, 12, 6).log_softmax(-1)
    text, lengths, olens = torch.tensor([[1, 2, 3], [4, 4, -1]]), torch.tensor([3, 2]), torch.tensor([12, 7])
    together = exits_ctc_loss(log_probs, olens, text, lengths)
    for number in range(3):
        torch.testing.assert_close(exits_ctc_loss(log_probs[number : number + 1], olens, text, lengths)[0], together[number])


@pytest.mark.parametrize(
    "weights",
    ["some", [1, 1], [1, -1, 1], [0, 0, 0], [1, float("nan"), 1], [1, 1, float("inf")], list("abc"), 5, None, {"a": 1}],
)
def test_bad_weights_are_refused(weights):
    with pytest.raises(UsageError, match="exit_weights"):
        exit_weights(weights, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_conf": {"ctc_weight": 0.3}}, "ctc_weight: 1.0"),
        ({"model_conf": {"ctc_weight": 1.0, "exit_heads": "none"}}, "exit_heads"),
        ({"model_conf": {"ctc_weight": 1.0, "exit_heads": ["shared"]}}, "exit_heads"),
        ({"ctc_conf": {"zero_infinity": False}}, "ctc_conf: .*zero_infinity"),
        ({"ctc_conf": {"reduce": False}}, "ctc_conf: .*reduce"),
        ({"preencoder": "linear", "preencoder_conf": {"input_size": 80, "output_size": 80}}, "preencoder: "),
        ({"model_conf": {"ctc_weight": 1.0, "exit_head": "shared"}}, "model_conf: unknown key 'exit_head'"),
        ({"encoder": "conformer", "encoder_conf": {"num_blocks": 1}}, "early_exit_\\* encoder"),
    ],
)
def test_bad_model_settings_are_named(changes, message):
    with pytest.raises(UsageError, match=message):
        tiny.model(**changes)


def stock_and_ours(backbone: str, exits: list[int], exit_norm: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Stock InterCTC and our encoder under the stock model, with the same parameters."""
    count = len(exits)
    settings_ = {"ctc_weight": 1.0, "interctc_weight": (count - 1) / count}
    conf = dict(tiny.BACKBONES[backbone][1])
    if backbone == "e_branchformer":
        # Its stock loop draws a random number per block (layer_drop_rate) that ours does not: same dropout is no dropout.
        conf.update(dropout_rate=0.0, positional_dropout_rate=0.0)
    ours = tiny.model(
        encoder=f"early_exit_{backbone}",
        encoder_conf={**conf, "exit_layers": exits, "exit_norm": exit_norm},
        model="espnet",
        model_conf=settings_,
    )
    stock_only = tiny.STOCK_ONLY if backbone == "conformer" else {}
    stock_conf = {**conf, **stock_only, "interctc_layer_idx": exits[:-1]}
    stock = ASRTask.build_model(
        argparse.Namespace(**tiny.config(encoder=backbone, encoder_conf=stock_conf, model="espnet", model_conf=settings_))
    )
    assert list(ours.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(ours.state_dict())
    return stock, ours


@pytest.mark.parametrize(
    ("backbone", "exit_norm"), [("conformer", "shared"), ("transformer", "shared"), ("e_branchformer", "none")]
)
def test_shared_head_under_the_stock_model_is_stock_interctc(backbone, exit_norm):
    stock, ours = stock_and_ours(backbone, [1, 2, 4], exit_norm)
    # 202511's stock convolution leaks padding: there the identity holds for batches of one length.
    lengths = (16000, 16000, 16000) if espnet_version() == "202511" else (16000, 12000, 9000)
    results = []
    for model in (stock, ours):
        model.train()
        torch.manual_seed(7)  # the same dropout
        loss, stats, _ = model(*batch(*lengths))
        loss.backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        results.append((loss, stats, gradients))
    (loss, stats, gradients), (our_loss, our_stats, our_gradients) = results
    assert torch.equal(loss, our_loss)
    assert {"loss_interctc_layer1", "loss_interctc_layer2"} <= stats.keys() == our_stats.keys()
    assert gradients.keys() == our_gradients.keys()
    assert all(torch.equal(gradients[name], our_gradients[name]) for name in gradients)


def test_a_batch_without_a_word_has_a_loss_and_the_same_statistics():
    model = tiny.model().eval()
    speech, lengths = torch.randn(2, 16000), torch.tensor([16000, 12000])
    _, spoken, _ = model(speech, lengths, torch.tensor([[2, 3], [4, 4]]), torch.tensor([2, 2]))
    loss, silent, _ = model(speech, lengths, torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 0]))
    assert math.isfinite(loss.item()) and float(silent["ctc_too_short"]) == 0
    assert list(silent) == list(spoken)
    assert all(math.isnan(float(value)) == name.startswith("cer") for name, value in silent.items())
