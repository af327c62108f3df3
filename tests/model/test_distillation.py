"""The final exit teaches: what it says, to whom, and that the batch does not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from espnet_ee.errors import UserError
from espnet_ee.model.distillation import DistillationTerm
from espnet_ee.model.span_distillation import SpanDistillationTerm
from espnet_ee.model.term import ExitBatch
from espnet_ee.model.text_distillation import TextDistillationTerm, greedy_labels
from tests import tiny

TERMS: dict[str, Callable[[torch.nn.Module], DistillationTerm]] = {
    "span_distillation": SpanDistillationTerm,
    "text_distillation": TextDistillationTerm,
}
MASKS = {"apply_time_warp": False, "num_freq_mask": 1, "num_time_mask": 1, "time_mask_width_range": [1, 8]}
BATCH = (torch.randn(2, 8000), torch.tensor([8000, 6000]), torch.tensor([[3, 4, 5], [5, 3, -1]]), torch.tensor([3, 2]))
LAYERS = (1, 2, 4)


def model(terms: dict[str, Any], **conf: Any) -> torch.nn.Module:
    settings = {"ctc_weight": 1.0, "exit_terms": terms, **conf}
    return tiny.model(model_conf=settings, specaug="specaug", specaug_conf=MASKS).train()


def term(name: str) -> DistillationTerm:
    return TERMS[name](model({"ctc": 1.0})).train()


def batch(
    logits: torch.Tensor, olens: list[int], text: tuple[tuple[int, ...], ...] = ((1, 2, 2), (3, -1, -1), (1, 2, 3))
) -> ExitBatch:
    lengths = torch.tensor([sum(label >= 0 for label in row) for row in text])
    return ExitBatch(LAYERS, [], logits, torch.tensor(olens), torch.tensor(text), lengths)


@pytest.mark.parametrize("name", TERMS)
def test_the_value_is_the_mean_of_what_each_utterance_has_alone(name: str) -> None:
    torch.manual_seed(0)
    logits, olens, made = 3 * torch.randn(3, 3, 9, 5), [9, 5, 2], term(name)
    together = batch(logits, olens)
    alone = [
        made(
            ExitBatch(
                LAYERS,
                [],
                logits[:, row : row + 1, :frames],
                together.olens[row : row + 1],
                together.text[row : row + 1, : together.text_lengths[row]],
                together.text_lengths[row : row + 1],
            )
        )
        for row, frames in enumerate(olens)
    ]
    value = made(together)
    assert value.shape == (3,) and value[2] == 0 and (value[:2] > 0).all()
    torch.testing.assert_close(value, torch.stack(alone).mean(dim=0))
    noise = logits.clone()
    for row, frames in enumerate(olens):
        noise[:, row, frames:] = 100 * torch.randn_like(noise[:, row, frames:])
    torch.testing.assert_close(made(batch(noise, olens)), value)


@pytest.mark.parametrize("name", TERMS)
def test_only_the_exits_below_learn_and_only_on_real_frames(name: str) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(3, 3, 9, 5)).requires_grad_()
    term(name)(batch(logits, [9, 5, 4])).sum().backward()
    assert logits.grad[:2, 0].any() and not logits.grad[2].any()
    assert not logits.grad[:, 1, 5:].any() and not logits.grad[:, 2, 4:].any()


@pytest.mark.parametrize("name", TERMS)
def test_nothing_of_it_in_evaluation(name: str) -> None:
    assert not term(name).eval()(batch(torch.randn(3, 3, 9, 5), [9, 5, 4])).any()
    with_term, without = model({"ctc": 1.0, name: 0.5}).eval(), model({"ctc": 1.0}).eval()
    with torch.no_grad():
        torch.testing.assert_close(with_term(*BATCH)[0], without(*BATCH)[0])


def test_the_span_term_by_hand() -> None:
    """Two exits, one label on two frames, two tokens: the means over the span are compared, whatever their order."""
    final = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    below = torch.tensor([[0.5, 0.5], [0.7, 0.3], [0.5, 0.5]])
    logits = torch.stack([below, final]).log()[:, None]
    made = term("span_distillation")
    value = made(ExitBatch((1, 2), [], logits, torch.tensor([3]), torch.tensor([[1]]), torch.tensor([1])))
    target, said = torch.tensor([0.3, 0.7]), torch.tensor([0.6, 0.4])
    torch.testing.assert_close(value, torch.stack([(target * (target / said).log()).sum(), torch.tensor(0.0)]))
    swapped = logits[:, :, [0, 2, 1]]
    torch.testing.assert_close(
        made(ExitBatch((1, 2), [], swapped, torch.tensor([3]), torch.tensor([[1]]), torch.tensor([1]))), value
    )


def test_exits_that_say_the_same_have_nothing_to_learn() -> None:
    said = (3 * torch.randn(1, 3, 9, 5)).expand(3, -1, -1, -1)
    torch.testing.assert_close(term("span_distillation")(batch(said, [9, 5, 4])), torch.zeros(3))


def test_the_text_term_is_ctc_with_the_greedy_text() -> None:
    logits = 3 * torch.randn(3, 1, 9, 5)
    logits[-1] = 9 * torch.eye(5)[torch.tensor([0, 2, 2, 0, 2, 1, 1, 4, 4])]
    value = term("text_distillation")(batch(logits, [8], ((3, -1),)))
    for exit_ in range(2):
        expected = torch.nn.functional.ctc_loss(
            logits[exit_, :, :8].log_softmax(-1).transpose(0, 1),
            torch.tensor([[2, 2, 1, 4]]),
            torch.tensor([8]),
            torch.tensor([4]),
            reduction="sum",
        )
        torch.testing.assert_close(value[exit_], expected)


def test_greedy_labels_without_repeats_blanks_and_padding() -> None:
    paths = torch.tensor([[0, 2, 2, 0, 2, 1], [3, 3, 1, 1, 4, 4], [0, 0, 0, 5, 5, 5]])
    labels, lengths = greedy_labels(torch.nn.functional.one_hot(paths, 6).float(), torch.tensor([6, 4, 3]), 0)
    assert labels.tolist() == [2, 2, 1, 3, 1] and lengths.tolist() == [3, 2, 0]


@pytest.mark.parametrize("name", TERMS)
def test_utterances_with_nothing_to_say_teach_nothing(name: str) -> None:
    """Silence of the final exit, or a text that does not fit its frames: 0, and finite gradients."""
    logits = torch.randn(3, 2, 4, 5)
    logits[-1, :, :, 0] = 50.0
    logits.requires_grad_()
    value = term(name)(batch(logits, [3, 2], ((1, 1, 1), (2, 2, -1))))
    assert not value.any()
    value.sum().backward()
    assert not logits.grad.any()
    nothing = torch.zeros(2, 0, dtype=torch.long)
    wordless = ExitBatch(LAYERS, [], torch.randn(3, 2, 4, 5), torch.tensor([4, 4]), nothing, nothing.sum(dim=1))
    assert torch.isfinite(term(name)(wordless)).all()


@pytest.mark.parametrize("heads", ["separate", "shared"])
def test_training_with_both_and_with_copies(heads: str) -> None:
    """The loss falls, every parameter has a gradient, and a checkpoint goes on where it was."""
    torch.manual_seed(0)
    lessons: dict[str, Any] = {name: {"weight": 0.3, "warmup": 5} for name in TERMS}
    terms = {"ctc": 1.0, "cr_ctc": 0.1, **lessons}
    made = model(terms, exit_heads=heads)
    torch.nn.init.constant_(made.ctc.ctc_lo.bias[:1], -3.0)  # so that it says words from the first step on
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    losses, said = [], []
    for _ in range(40):
        loss, stats, _ = made(*BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(stats["loss"]))
        said.append([float(stats[f"{name}_exit{layer:02d}"]) for name in TERMS for layer in LAYERS])
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert [key for key, value in made.named_parameters() if value.grad is None] == []
    assert not any(said[0]) and all(not row[2] and not row[5] for row in said) and max(row[0] for row in said) > 0
    assert max(row[3] for row in said) > 0, "the final exit never said a word"
    other = model(terms, exit_heads=heads)
    other.load_state_dict(made.state_dict())
    assert int(other.exit_terms.step) == 40


@pytest.mark.parametrize("name", TERMS)
def test_one_exit_has_nobody_to_teach(name: str) -> None:
    with pytest.raises(UserError, match="exit_terms.*distillation"):
        tiny.model(
            model_conf={"ctc_weight": 1.0, "exit_terms": {"ctc": 1.0, name: 0.2}},
            encoder_conf={**tiny.CONFORMER, "num_blocks": 2, "exit_layers": [2]},
        )
