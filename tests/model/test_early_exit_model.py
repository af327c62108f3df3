"""Losses and error rates of every exit, and the identity with stock InterCTC."""

import argparse
import math

import jiwer
import pytest
import torch
from espnet2.asr.ctc import CTC
from espnet2.tasks.asr import ASRTask
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.errors import UsageError, UserError
from espnet_ee.host.compat import espnet_version
from espnet_ee.model.ctc import exits_ctc_loss, frames_needed
from espnet_ee.model.heads import exit_heads_of
from espnet_ee.model.term import Term
from espnet_ee.model.terms import TERMS
from espnet_ee.model.weights import exit_weights
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
        head = CTC(len(tiny.TOKENS), 16)
        head.load_state_dict(exit_heads_of(model).by_layer[layer].stock_state())
        expected = head.eval()(hs, olens, text, text_lengths)
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
    """Heads that say many letters: those of padded frames would be errors more."""
    model = tiny.model()
    heads = [model.exit_ctc["1"], model.exit_ctc["2"], model.ctc]
    speech, lengths, text, text_lengths = batch(16000, 12000, 9000)
    with torch.no_grad():
        (final, below), olens = model.encode(speech, lengths)
        for head, hs in zip(heads, [*(hs for _, hs in below), final], strict=True):
            torch.nn.init.normal_(head.ctc_lo.weight)
            head.ctc_lo.bias.copy_(-head.ctc_lo.weight @ hs.mean(dim=(0, 1)))
            head.ctc_lo.bias[[0, 1, 2, 7]] = -1000.0  # letters alone
        stats = model(speech, lengths, text, text_lengths)[1]
    references = [words(LABELS[row, : LABEL_LENGTHS[row]].tolist()) for row in range(3)]
    for (layer, hs), head in zip([*below, (4, final)], heads, strict=True):
        paths = head.ctc_lo(hs).argmax(-1).tolist()
        real = [words(collapse(path[: olens[row]])) for row, path in enumerate(paths)]
        padded = [words(collapse(path)) for path in paths]
        rate = jiwer.cer(references, real)
        assert rate != jiwer.cer(references, padded), "the test would pass with padding counted"
        assert stats[f"cer_exit{layer:02d}"].item() == pytest.approx(rate)
    model.train()
    assert not [name for name in model(*batch(16000, 12000, 9000))[1] if name.startswith("cer")]


def words(tokens: list[int]) -> str:
    return tokens_to_text([tiny.TOKENS[token] for token in tokens])


@pytest.mark.parametrize("heads", ["separate", "shared"])
def test_a_heads_dropout_is_applied_in_training_and_only_there(heads):
    model = tiny.model(ctc_conf={"dropout_rate": 0.5}, model_conf={"ctc_weight": 1.0, "exit_heads": heads})
    hs, olens = torch.randn(1, 30, 16), torch.tensor([30])
    for layer in (1, 2, 4):
        state = exit_heads_of(model).by_layer[layer].stock_state()
        plain = torch.nn.functional.linear(hs, state["ctc_lo.weight"], state["ctc_lo.bias"])
        assert torch.equal(exit_heads_of(model.eval()).logits(layer, hs, olens), plain)
        one, other = (exit_heads_of(model.train()).logits(layer, hs, olens) for _ in range(2))
        assert not torch.allclose(one, other) and not torch.allclose(one, plain)
    torch.manual_seed(5)
    inputs = batch(16000, 12000, 9000)
    still = [float(model.eval()(*inputs)[0].detach()) for _ in range(2)]
    assert still[0] == still[1]


class MeanLogit(Term):
    """A term with a parameter, as one would add it."""

    def __init__(self, model):
        super().__init__(model)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, batch):
        assert batch.logits.shape == (len(batch.layers), *batch.log_probs.shape[1:])
        assert [hs.shape[:2] for hs in batch.hidden] == [batch.logits.shape[1:3]] * len(batch.layers)
        return self.scale * batch.logits.mean(dim=(1, 2, 3))


def test_a_new_term_is_one_class_and_one_line(monkeypatch):
    monkeypatch.setitem(TERMS, "mean_logit", MeanLogit)
    inputs = batch(16000, 12000, 9000)
    plain = tiny.model()
    model = tiny.model(model_conf={"ctc_weight": 1.0, "exit_terms": {"ctc": 0.5, "mean_logit": 3.0}, "freeze_backbone": True})
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == ["exit_terms.terms.mean_logit.scale"] and not missing.unexpected_keys
    loss, stats, _ = model(*inputs)
    (final, below), olens = model.encode(*inputs[:2])
    total = 0.0
    for layer, hs in [*below, (4, final)]:
        mean = exit_heads_of(model).logits(layer, hs, olens).mean().item()
        value = 0.5 * plain(*inputs)[1][f"loss_exit{layer:02d}"].item() + 3.0 * 2.0 * mean
        assert stats[f"loss_exit{layer:02d}"].item() == pytest.approx(value, rel=1e-5)
        total += value
    assert loss.item() == pytest.approx(total, rel=1e-5)
    loss.backward()
    assert model.exit_terms.terms["mean_logit"].scale.grad is not None


def test_separate_heads_are_separate_and_shared_ones_shared():
    separate, shared = tiny.model(), tiny.model(model_conf={"ctc_weight": 1.0, "exit_heads": "shared"})
    states = [exit_heads_of(separate).by_layer[layer].stock_state()["ctc_lo.weight"] for layer in (1, 2, 4)]
    assert not torch.equal(states[0], states[1]) and not torch.equal(states[1], states[2])
    assert states[2].data_ptr() == separate.ctc.ctc_lo.weight.data_ptr()
    for model in (shared, tiny.model(model="espnet", model_conf={"ctc_weight": 1.0, "interctc_weight": 0.5})):
        for layer in (1, 2, 4):
            state = exit_heads_of(model).by_layer[layer].stock_state()
            assert state["ctc_lo.weight"].data_ptr() == model.ctc.ctc_lo.weight.data_ptr()
    assert [name for name in separate.state_dict() if "ctc" in name] == [
        f"{head}.ctc_lo.{part}" for head in ("ctc", "exit_ctc.1", "exit_ctc.2") for part in ("weight", "bias")
    ]


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
        ({"model_conf": {"ctc_weight": 1.0, "exit_terms": {"ctc": 1.0, "mwer": 1.0}}}, "exit_terms: 'mwer'"),
        ({"model_conf": {"ctc_weight": 1.0, "exit_terms": {"ctc": 0}}}, "exit_terms: ctc"),
        ({"model_conf": {"ctc_weight": 1.0, "exit_terms": {}}}, "exit_terms"),
        ({"model_conf": {"ctc_weight": 1.0, "exit_terms": "ctc"}}, "exit_terms"),
        ({"ctc_conf": {"zero_infinity": False}}, "ctc_conf: .*zero_infinity"),
        ({"ctc_conf": {"reduce": False}}, "ctc_conf: .*reduce"),
        (
            {"preencoder": "linear", "preencoder_conf": {"input_size": 40, "output_size": 80}},
            "preencoder_conf: input_size is 40",
        ),
        ({"model_conf": {"ctc_weight": 1.0, "exit_head": "shared"}}, "model_conf: unknown key 'exit_head'"),
        ({"encoder": "conformer", "encoder_conf": {"num_blocks": 1}}, "early_exit_\\* encoder"),
    ],
)
def test_bad_model_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        tiny.model(**changes)


def stock_and_ours(backbone: str, exits: list[int], exit_norm: str, **changes: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Stock InterCTC and our encoder under the stock model, with the same parameters."""
    count = len(exits)
    settings_ = {"ctc_weight": 1.0, "interctc_weight": (count - 1) / count}
    conf = {**tiny.BACKBONES[backbone][1], **changes}
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


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize(
    ("backbone", "exit_norm"), [("conformer", "shared"), ("transformer", "shared"), ("e_branchformer", "none")]
)
def test_shared_head_under_the_stock_model_is_stock_interctc(backbone, exit_norm, conditioned):
    stock, ours = stock_and_ours(backbone, [1, 2, 4], exit_norm, interctc_use_conditioning=conditioned)
    assert ours.encoder.conditioned == conditioned == ("encoder.conditioning_layer.weight" in ours.state_dict())
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
