"""Attention decoders at the exits: their loss is ESPnet's, every exit learns, and wrong combinations are one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from espnet_ee.errors import UserError
from espnet_ee.model.decoders import exit_decoders_of
from tests import tiny

KINDS = ("separate", "shared")
LAYERS = (1, 2, 4)
TEXT, LENGTHS = torch.tensor([[3, 4, 5, 5], [3, 2, 4, -1], [5, -1, -1, -1]]), torch.tensor([4, 3, 1])


def batch() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(3)
    return torch.randn(3, 16000), torch.tensor([16000, 12000, 9000]), TEXT.clone(), LENGTHS.clone()


@pytest.mark.parametrize("conf", [{}, {"lsm_weight": 0.1}, {"lsm_weight": 0.1, "length_normalized_loss": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_accuracy_of_every_exit_are_espnets(kind: str, conf: dict[str, Any]) -> None:
    made = tiny.model(**tiny.attention(kind, **conf))
    inputs = batch()
    loss, stats, _ = made(*inputs)
    (final, below), olens = made.encode(*inputs[:2])
    total = 0.0
    for layer, hs in [*below, (4, final)]:
        own = made.decoder
        made.decoder = exit_decoders_of(made)[layer]
        expected, accuracy, *_ = made._calc_att_loss(hs, olens, TEXT, LENGTHS)
        made.decoder = own
        torch.testing.assert_close(stats[f"loss_att_exit{layer:02d}"][0], expected)
        torch.testing.assert_close(stats[f"attention_exit{layer:02d}"][0], 0.7 * expected)
        assert stats[f"acc_exit{layer:02d}"].item() == pytest.approx(accuracy)
        exit_loss = stats[f"loss_exit{layer:02d}"][0]
        torch.testing.assert_close(exit_loss, stats[f"ctc_exit{layer:02d}"][0] + stats[f"attention_exit{layer:02d}"][0])
        total += exit_loss.item()
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert stats["acc"] == stats["acc_exit04"]


def test_the_final_exits_decoder_is_espnets_and_the_others_share_its_embedding_alone() -> None:
    separate, shared = (tiny.model(**tiny.attention(kind)) for kind in KINDS)
    decoders = exit_decoders_of(separate)
    assert list(decoders) == [1, 2, 4] and decoders[4] is separate.decoder
    names = [set(dict(decoder.named_parameters())) for decoder in decoders.values()]
    assert names[0] == names[1] == names[2]
    for name in names[0]:
        values = [decoder.get_parameter(name) for decoder in decoders.values()]
        same = name == "embed.0.weight"
        assert [value is values[2] for value in values] == [same, same, True]
        trivial = name.endswith("bias") or "norm" in name
        assert same or trivial or not torch.equal(values[0], values[1])
    assert set(map(id, exit_decoders_of(shared).values())) == {id(shared.decoder)}
    assert not [name for name in shared.state_dict() if name.startswith("exit_decoders")]
    assert exit_decoders_of(tiny.model()) == {}


def test_the_batch_does_not_matter() -> None:
    made = tiny.model(**tiny.attention())
    speech, lengths, text, text_lengths = batch()
    together = made(speech, lengths, text, text_lengths)[1]
    alone = [
        made(speech[i : i + 1, : lengths[i]], lengths[i : i + 1], text[i : i + 1, : text_lengths[i]], text_lengths[i : i + 1])[
            1
        ]
        for i in range(3)
    ]
    # STFT frames at an utterance's end see the padding, in training alone: the features differ a little there.
    for layer in LAYERS:
        mean = sum(stats[f"loss_att_exit{layer:02d}"].item() for stats in alone) / 3
        assert together[f"loss_att_exit{layer:02d}"].item() == pytest.approx(mean, rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_exit_learns_and_a_checkpoint_goes_on(kind: str) -> None:
    made = tiny.model(**tiny.attention(kind)).train()
    optimizer, inputs, history = torch.optim.Adam(made.parameters(), lr=3e-3), batch(), []
    for _ in range(30):
        loss, stats, _ = made(*inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append([stats[f"{name}_exit{layer:02d}"].item() for name in ("loss_att", "ctc") for layer in LAYERS])
    assert [name for name, value in made.named_parameters() if value.grad is None or not value.grad.any()] == []
    first, last = (torch.tensor(history[part]).mean(dim=0) for part in (slice(5), slice(-5, None)))
    assert (last < 0.8 * first).all(), (first, last)
    other = tiny.model(seed=1, **tiny.attention(kind))
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(*inputs)[0], made.eval()(*inputs)[0])


def test_a_frozen_backbone_trains_heads_and_decoders() -> None:
    made = tiny.model(**tiny.attention(freeze_backbone=True)).train()
    made(*batch())[0].backward()
    trained = {name.split(".")[0] for name, value in made.named_parameters() if value.grad is not None}
    assert trained == {"ctc", "decoder", "exit_ctc", "exit_decoders", "encoder"}
    assert all("exit_norms" in name for name, value in made.encoder.named_parameters() if value.grad is not None)


def test_without_a_word_the_statistics_are_the_same() -> None:
    made = tiny.model(**tiny.attention())
    speech, lengths = torch.randn(2, 16000), torch.tensor([16000, 12000])
    spoken = made(speech, lengths, torch.tensor([[2, 3], [4, 4]]), torch.tensor([2, 2]))[1]
    loss, silent, _ = made(speech, lengths, torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 0]))
    assert torch.isfinite(loss) and list(silent) == list(spoken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_conf": {"ctc_weight": 0.3}},
            r"ctc_weight 0.3 .*set ctc_weight: 1.0.*exit_terms: \{ctc: 0.3, attention: 0.7\}",
        ),
        ({"model_conf": {"ctc_weight": 1.0, "exit_decoders": "shared"}}, "exit_decoders: shared without decoders"),
        ({"model_conf": {"ctc_weight": 1.0, "exit_decoders": "own"}}, "exit_decoders 'own' is not one of separate, shared"),
        (tiny.attention("own"), "exit_decoders 'own' is not one of separate, shared"),
        (tiny.attention(ctc_weight="3e-1"), "ctc_weight '3e-1' is no number"),
        (tiny.attention(ctc_weight=1.0), "ctc_weight 1.0, where .*set ctc_weight: 0.3"),
        (tiny.attention(ctc_weight=0.5), "set ctc_weight: 0.3"),
        (tiny.attention(exit_terms={"ctc": 1, "attention": 1}), "set ctc_weight: 0.5"),
        (tiny.attention(exit_terms={"attention": 1}), "attention without ctc"),
        (tiny.attention(exit_terms={"ctc": 0.3, "attention": -1}), "exit_terms: attention: -1 is no positive number"),
        (tiny.attention(lang_token_id=3), "lang_token_id"),
        ({**tiny.attention(), "decoder": None}, "takes decoder: transformer and its decoder_conf, and there is none"),
        ({**tiny.attention(), "decoder": "rnn", "decoder_conf": {}}, "takes decoder: transformer .* RNNDecoder"),
        ({**tiny.attention(), "decoder": "transducer", "decoder_conf": {}}, "set decoder: transformer or null"),
    ],
)
def test_wrong_combinations_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny.model(**changes)
    assert "\n" not in str(caught.value)
