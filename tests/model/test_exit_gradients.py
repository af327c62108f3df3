"""What of the joint loss reaches the shared encoder: all, the mean over the exits, or two exits a step."""

from __future__ import annotations

import re

import pytest
import torch

from espnet_ee.encoder.base import scale_gradient
from espnet_ee.errors import UserError
from espnet_ee.model.weights import ExitWeights
from tests import tiny

STILL = {"dropout_rate": 0.0, "positional_dropout_rate": 0.0, "attention_dropout_rate": 0.0}
FAST = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 24,
    "num_blocks": 4,
    "cnn_module_kernel": 7,
    "convolution_norm": "layer",
    **STILL,
}
ENCODERS = {
    "early_exit_conformer": {**tiny.CONFORMER, **STILL, "exit_norm": "separate"},
    "early_exit_fast_conformer": FAST,
    "half_rate": {**FAST, "half_rate": [2, 3]},
    "early_exit_splitformer": FAST,
}
# Of the parts that are no blocks: how many exits lie from them on.
PARTS = {"encoder.embed": 3, "encoder.half_rate_input": 2, "encoder.branches.1": 3}
LAYERS = (1, 2, 4)
BATCH = (torch.randn(2, 8000), torch.tensor([8000, 6000]), torch.tensor([[3, 4, 5], [5, 3, -1]]), torch.tensor([3, 2]))


def model(gradients: str, encoder: str = "early_exit_conformer", **conf: object) -> torch.nn.Module:
    return tiny.model(
        encoder="early_exit_fast_conformer" if encoder == "half_rate" else encoder,
        encoder_conf={**ENCODERS[encoder], "exit_layers": list(LAYERS)},
        model_conf={"ctc_weight": 1.0, "exit_gradients": gradients, **conf},
    ).train()


def exits_above(name: str) -> int:
    """How many exits the gradient of an encoder's parameter comes from; 1: of an exit's own, or of the top segment."""
    block = re.match(r"encoder\.encoders\.(\d+)\.", name)
    if block:
        return sum(layer > int(block[1]) for layer in LAYERS)
    return next((exits for part, exits in PARTS.items() if name.startswith(part)), 1)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_scaled_is_the_mean_over_the_exits_from_a_segment_on(encoder: str) -> None:
    """By hand: the gradient of each exit's loss alone, added up for every parameter and divided by their number."""
    scaled, full = model("scaled", encoder).double(), model("full", encoder).double()
    batch = (BATCH[0].double(), *BATCH[1:])
    loss, _, _ = scaled(*batch)
    loss.backward()
    sums: dict[str, torch.Tensor] = {}
    for number in range(len(LAYERS)):
        full.exit_weights.weights = torch.nn.functional.one_hot(torch.tensor(number), len(LAYERS)).double()
        full.zero_grad()
        full(*batch)[0].backward()
        for name, parameter in full.named_parameters():
            sums[name] = sums.get(name, 0) + (0 if parameter.grad is None else parameter.grad)
    counts = {exits_above(name) for name in sums}
    assert counts == {1, 2, 3}
    for name, parameter in scaled.named_parameters():
        torch.testing.assert_close(parameter.grad, sums[name] / exits_above(name), rtol=1e-6, atol=1e-10, msg=name)


def test_scaling_leaves_values_and_evaluation_alone() -> None:
    scaled, full = model("scaled"), model("full")
    assert torch.equal(scaled(*BATCH)[0], full(*BATCH)[0])
    for made in (scaled, full):
        made.eval().zero_grad()
        made(*BATCH)[0].backward()
    for (name, ours), theirs in zip(scaled.named_parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert list(scaled.state_dict()) == list(full.state_dict())


def test_a_scaled_gradient_is_that_of_its_own_path_only() -> None:
    value = torch.ones(2, requires_grad=True)
    (scale_gradient(value, 0.25).sum() + value.sum()).backward()
    assert value.grad.tolist() == [1.25, 1.25]
    plain = torch.ones(2)
    assert scale_gradient(plain, 0.25) is plain


def test_rotating_takes_turns_and_goes_on_after_a_checkpoint() -> None:
    weights = ExitWeights((1.0, 2.0, 3.0, 4.0), "rotating").train()
    turns = [weights().tolist() for _ in range(4)]
    assert turns == [[1, 0, 0, 4], [0, 2, 0, 4], [0, 0, 3, 4], [1, 0, 0, 4]]
    other = ExitWeights((1.0, 2.0, 3.0, 4.0), "rotating").train()
    other.load_state_dict(weights.state_dict())
    assert other().tolist() == [0, 2, 0, 4]
    for _ in range(2):
        assert other.eval()().tolist() == [1, 2, 3, 4]
    assert other.train()().tolist() == [0, 0, 3, 4]
    assert ExitWeights((1.0,), "rotating").train()().tolist() == [1.0]
    assert not ExitWeights((1.0, 1.0), "scaled").state_dict()


def test_a_rotating_step_leaves_the_other_exits_alone() -> None:
    made = model("rotating")
    for turn in ("1", "2", "1"):
        made.zero_grad()
        loss, stats, _ = made(*BATCH)
        loss.backward()
        assert {f"loss_exit{layer:02d}" for layer in LAYERS} <= stats.keys()  # reported, if not trained
        moved = {layer: bool(made.exit_ctc[layer].ctc_lo.weight.grad.any()) for layer in ("1", "2")}
        assert moved == {"1": turn == "1", "2": turn == "2"} and made.ctc.ctc_lo.weight.grad.any()
        assert all(value.grad is not None for value in made.parameters())


@pytest.mark.parametrize("gradients", ["scaled", "rotating"])
def test_training_with_every_term(gradients: str) -> None:
    torch.manual_seed(0)
    terms = {"ctc": 1.0, "cr_ctc": {"weight": 0.1, "warmup": 5}, "span_distillation": 0.1, "text_distillation": 0.1}
    masks = {"apply_time_warp": False, "num_freq_mask": 1, "num_time_mask": 1, "time_mask_width_range": [1, 8]}
    conf = {"ctc_weight": 1.0, "exit_gradients": gradients, "exit_terms": terms}
    made = tiny.model(model_conf=conf, specaug="specaug", specaug_conf=masks).train()
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss, stats, _ = made(*BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(sum(float(stats[f"loss_exit{layer:02d}"]) for layer in LAYERS))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert [key for key, value in made.named_parameters() if value.grad is None] == []
    other = tiny.model(seed=1, model_conf=conf, specaug="specaug", specaug_conf=masks)
    other.load_state_dict(made.state_dict())
    with torch.no_grad():
        assert torch.equal(other(*BATCH)[0], made.eval()(*BATCH)[0])


def test_other_words_are_refused() -> None:
    with pytest.raises(UserError, match="exit_gradients 'mean' is not one of full, scaled, rotating"):
        model("mean")
