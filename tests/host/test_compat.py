"""What ESPnet's modules keep of a call, and what its masks cost, does not reach users."""

import importlib.util
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.host import compat
from espnet_ee.host.compat import attention, make_pad_mask, make_pad_masks_linear, nets_utils, with_positions
from tests import tiny


def untouched() -> ModuleType:
    """ESPnet's file once more: in its module our function may be in place already."""
    spec = importlib.util.spec_from_file_location("untouched_nets_utils", nets_utils.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STOCK = untouched()
every_backbone = pytest.mark.parametrize("backbone", tiny.BACKBONES)


def features(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(sum(lengths))
    return torch.randn(len(lengths), max(lengths), 80), torch.tensor(lengths)


@every_backbone
def test_eight_threads_on_one_encoder_give_what_one_gives(backbone):
    encoder = tiny.encoder([1, 2, 4], backbone=backbone)
    batches = [
        features(*lengths) for lengths in ((90, 41), (57,), (120, 77, 30), (33, 33), (64, 20), (101,), (45, 44), (80, 79))
    ]
    batches *= 6

    def outputs(number: int) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [output.hs for output in encoder.iter_exits(*batches[number])]

    alone = [outputs(number) for number in range(len(batches))]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(outputs, range(len(batches))))
    for ours, theirs in zip(together, alone, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@every_backbone
@pytest.mark.parametrize("training", [False, True])
def test_no_block_holds_anything_of_a_pass(backbone, training):
    encoder = tiny.encoder([1, 2, 4], backbone=backbone).train(training)
    before = tensors_on(encoder)
    encoder(*features(90, 61))
    assert tensors_on(encoder) == before
    attentions = [part for part in encoder.modules() if isinstance(part, attention.MultiHeadedAttention)]
    assert len(attentions) == 4 and all(part.attn is None for part in attentions)


def tensors_on(encoder: torch.nn.Module) -> list[tuple[str, str]]:
    """Where tensors lie as plain attributes of modules."""
    return [
        (name, key) for name, part in encoder.named_modules() for key, value in vars(part).items() if torch.is_tensor(value)
    ]


def test_a_hook_sees_the_map_while_its_attention_runs():
    """ESPnet's trainer plots it so (``calculate_all_attentions``)."""
    encoder = tiny.encoder([1, 2, 4])
    maps = []
    for block in encoder.encoders:
        block.self_attn.register_forward_hook(lambda part, *_: maps.append(part.attn))
    encoder(*features(90, 61))
    assert [weights.shape for weights in maps] == [(2, 2, 21, 21)] * 4
    assert all(torch.allclose(weights.sum(-1), torch.ones(())) for weights in maps)


@every_backbone
def test_an_encoder_is_pickled_whole(backbone):
    encoder = tiny.encoder([1, 2, 4], backbone=backbone)
    copied = pickle.loads(pickle.dumps(encoder))
    for ours, theirs in zip(encoder.iter_exits(*features(90, 61)), copied.iter_exits(*features(90, 61)), strict=True):
        assert torch.equal(ours.hs, theirs.hs)
    tiny.assert_the_batch_does_not_matter(copied)


@pytest.mark.parametrize("changes", [{}, {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"}], ids=str)
def test_positions_beyond_the_table_go_to_a_table_of_their_own(changes):
    """Another thread may be reading the old one, which ESPnet would replace in place."""
    encoder = tiny.encoder([4], input_layer="linear", num_blocks=4, **changes)
    table = encoder.embed[-1].pe
    frames = table.size(1) + 2
    grown = with_positions(encoder.embed, frames)
    assert grown is not encoder.embed and encoder.embed[-1].pe is table
    assert with_positions(grown, frames) is grown and with_positions(grown, 5) is grown
    assert all(one is other for one, other in zip(grown.parameters(), encoder.embed.parameters(), strict=True))
    xs = torch.randn(1, frames, 80)
    with torch.no_grad():
        ours, stock = grown(xs), encoder.embed(xs)  # stock grows its own here
    pairs = zip(ours, stock, strict=True) if isinstance(ours, tuple) else [(ours, stock)]
    assert all(torch.equal(one, other) for one, other in pairs)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_masks_are_espnets(data):
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4)))
    longest = int(lengths.max()) + data.draw(st.integers(0, 3))
    longest = max(longest, 1)
    if data.draw(st.booleans()):
        maxlen = data.draw(st.sampled_from([None, longest])) if int(lengths.max()) else longest
        arguments = {"maxlen": maxlen}
    else:
        dims = data.draw(st.integers(0, 2))
        shape, length_dim = [((longest,), -1), ((longest, 3), 1), ((3, longest), 2)][dims]
        arguments = {"xs": torch.zeros(len(lengths), *shape), "length_dim": length_dim}
    ours = make_pad_mask(lengths, **arguments)
    stock = STOCK.make_pad_mask(lengths, **arguments)
    assert ours.dtype == stock.dtype and torch.equal(ours, stock)


def test_espnets_own_masks_are_linear():
    make_pad_masks_linear()
    lengths = torch.tensor([200_000, 3])  # the square would be 40 GB
    mask = nets_utils.make_pad_mask(lengths, torch.zeros(2, 200_000, 1), 1)
    assert mask.sum().item() == 200_000 - 3


@pytest.mark.parametrize("backbone", ["conformer", "transformer", "e_branchformer"])
@pytest.mark.parametrize("most", [1, 1000])
def test_scores_of_long_audio_are_computed_by_and_by(monkeypatch: pytest.MonkeyPatch, backbone: str, most: int) -> None:
    made = tiny.encoder([2, 4], backbone=backbone)
    torch.manual_seed(0)
    xs, ilens = torch.randn(2, 403, 80), torch.tensor([403, 250])
    sizes: list[int] = []
    rows = compat._attend_by_rows
    monkeypatch.setattr(compat, "_attend_by_rows", lambda *words: sizes.append(words[2]) or rows(*words))
    with torch.no_grad():
        whole = list(made.iter_exits(xs, ilens))
        assert not sizes  # ESPnet's own arithmetic
        monkeypatch.setattr(compat, "_MOST_SCORES", most)
        parts = list(made.iter_exits(xs, ilens))
    assert len(sizes) == 4 and set(sizes) == {whole[0].hs.size(1)}
    for one, other in zip(parts, whole, strict=True):
        for row, length in enumerate(other.olens.tolist()):
            torch.testing.assert_close(one.hs[row, :length], other.hs[row, :length], atol=2e-5, rtol=1e-4)
