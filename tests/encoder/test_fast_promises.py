"""What every encoder promises, of those built of fast blocks: at full rate, with blocks at half rate, with branches at half rate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espnet_ee.decode.loop import recognise
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.encoder.fast_blocks import FastConformerBlock
from espnet_ee.encoder.fast_conformer import EarlyExitFastConformerEncoder
from espnet_ee.encoder.splitformer import EarlyExitSplitformerEncoder
from espnet_ee.errors import UsageError
from espnet_ee.plugin.classes import ENCODERS
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from tests import tiny

SIZES: dict[str, Any] = {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 4, "cnn_module_kernel": 7}
FAST, SPLIT = "early_exit_fast_conformer", "early_exit_splitformer"
# Half rate: without an exit among its blocks, with one, with two, one block, up to the last, from the first on.
HALF_RATES: list[tuple[str, dict[str, Any]]] = [
    (FAST, {"half_rate": [3, 4]}),
    (FAST, {"half_rate": [2, 3]}),
    (FAST, {"half_rate": [1, 3], "convolution_norm": "layer"}),
    (FAST, {"half_rate": [3, 3], "subsampling": 6}),
    (FAST, {"half_rate": [1, 4], "cnn_module_kernel": 31}),
    (FAST, {"half_rate": [3, 4], "chunk_range": [2, 6], "left_frames": 5}),
    (SPLIT, {}),
    (SPLIT, {"exit_layers": [4], "subsampling": 8}),
]
half_rates = pytest.mark.parametrize(("name", "changes"), HALF_RATES, ids=str)
every_one = pytest.mark.parametrize(("name", "changes"), [(FAST, {}), *HALF_RATES], ids=str)


def encoder(name: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    made = ENCODERS[name](80, **{"exit_layers": [1, 2, 4], **SIZES, **changes})
    tiny.stir_batch_norm(made)
    return made.eval()


def features(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features, padded with noise."""
    torch.manual_seed(1)
    return torch.randn(len(lengths), max(lengths), 80), torch.tensor(lengths)


@half_rates
def test_the_batch_does_not_matter(name: str, changes: dict[str, Any]) -> None:
    # Odd and even numbers of frames, and utterances whose last frame at half rate is made of one real frame.
    tiny.assert_the_batch_does_not_matter(encoder(name, **changes), (97, 93, 64, 63, 59, 40, 19, 15))


@half_rates
def test_nor_does_padding_in_training(name: str, changes: dict[str, Any]) -> None:
    """The statistics that a batch leaves, its outputs and its gradients are those of its real frames."""
    results = []
    for noise in (0.0, 100.0):
        xs, ilens = features(60, 93)
        made = encoder(name, **changes, dropout_rate=0, positional_dropout_rate=0, attention_dropout_rate=0).train()
        xs[0, 60:] = noise
        (final, below), olens, _ = made(xs, ilens)
        sum(
            hs[row, :length].sin().sum() for hs in (final, *dict(below).values()) for row, length in enumerate(olens)
        ).backward()
        results.append([*(buffer.clone() for buffer in made.buffers()), *(p.grad for p in made.parameters())])
    for one, other in zip(*results, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@every_one
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_selecting_rows_changes_nothing_for_them(name: str, changes: dict[str, Any], data: st.DataObject) -> None:
    made = encoder(name, **changes)
    lengths = data.draw(st.lists(st.integers(15, 90), min_size=2, max_size=5))
    rows = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    with torch.no_grad():
        states = [made.start(*features(*lengths))] * 2
        while states[0].layer < 4:
            whole, kept = made.advance(states[0]), made.advance(states[1].select(rows) if states[1] is states[0] else states[1])
            states = [whole.state, kept.state]
            assert kept.olens.tolist() == [int(whole.olens[row]) for row in rows]
            assert kept.hs.size(1) == max(kept.olens)
            for place, row in enumerate(rows):
                frames = int(kept.olens[place])
                torch.testing.assert_close(kept.hs[place, :frames], whole.hs[row, :frames], atol=1e-5, rtol=1e-4)


@half_rates
def test_selecting_at_any_exit_changes_nothing(name: str, changes: dict[str, Any]) -> None:
    made = encoder(name, **changes)
    with torch.no_grad():
        whole = list(made.iter_exits(*features(97, 60, 93)))
        for place, output in enumerate(whole[:-1]):
            state = output.state.select([2, 1])
            assert state.carry.real is not None and output.state.select([0]).carry.real is None
            for expected in whole[place + 1 :]:
                kept = made.advance(state)
                state = kept.state
                for row, source in enumerate((2, 1)):
                    frames = int(kept.olens[row])
                    torch.testing.assert_close(kept.hs[row, :frames], expected.hs[source, :frames], atol=1e-5, rtol=1e-4)


@half_rates
def test_stopping_gives_the_full_pass_and_computes_no_block_above(name: str, changes: dict[str, Any]) -> None:
    made, ran = encoder(name, **changes), []
    for number, block in enumerate(made.encoders, 1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    (final, below), _, _ = made(*features(90, 61))
    whole = dict(below) | {4: final}
    for count, layer in enumerate(made.exit_layers, 1):
        ran.clear()
        exits = made.iter_exits(*features(90, 61))
        stopped = [next(exits) for _ in range(count)][-1]
        assert stopped.layer == layer and ran == list(range(1, layer + 1))
        assert torch.equal(stopped.hs, whole[layer]) and stopped.hs.size(1) == max(stopped.olens)


_MADE: dict[str, Any] = {}


@every_one
@given(frames=st.integers(15, 300))
@settings(max_examples=6, deadline=None)
def test_the_table_is_a_direct_count_at_any_length(name: str, changes: dict[str, Any], frames: int) -> None:
    made = _MADE.setdefault(f"{name} {changes}", encoder(name, **changes))
    table = made.macs()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for output in made.iter_exits(torch.randn(1, frames, 80), torch.tensor([frames])):
            assert counter.get_total_flops() == 2 * table.encoder_macs(output.layer, frames)


def test_half_the_frames_cost_half() -> None:
    sizes = {"exit_layers": [2, 4, 6, 8, 10, 12], "num_blocks": 12, "output_size": 64, "linear_units": 256}
    full = EarlyExitFastConformerEncoder(80, **sizes).macs()
    half = EarlyExitFastConformerEncoder(80, **sizes, half_rate=[5, 10]).macs()
    for layer, share in ((2, 1), (4, 1), (6, 5 / 6), (8, 6 / 8), (10, 7 / 10), (12, 9 / 12)):
        ratio = half.encoder_macs(layer, 1000) / full.encoder_macs(layer, 1000)
        assert share - 0.06 < ratio < share + 0.04, (layer, ratio)


@half_rates
def test_what_is_at_half_rate_sees_every_second_frame(name: str, changes: dict[str, Any]) -> None:
    made, lengths = encoder(name, **changes), []
    for block in made.modules():
        if isinstance(block, FastConformerBlock):
            block.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].size(1)))
    xs, ilens = features(99)
    frames = int(made.frames_of(ilens))
    list(made.iter_exits(xs, ilens))
    first, last = changes.get("half_rate", (1, 0))
    assert lengths.count((frames + 1) // 2) == (last - first + 1 or len(getattr(made, "branches", ())))
    assert lengths.count(frames) == 4 - (last - first + 1)


@every_one
def test_one_frame_is_enough(name: str, changes: dict[str, Any]) -> None:
    made = encoder(name, **changes)
    for further in range(3):
        length = made.min_frames + further * made.stride
        outputs = list(made.iter_exits(torch.randn(1, length, 80), torch.tensor([length])))
        assert {output.hs.size(1) for output in outputs} == {further + 1}


def test_a_splitformer_takes_what_the_fast_conformer_takes_but_for_half_rate() -> None:
    from espnet2.utils.get_default_kwargs import get_default_kwargs

    ours, fast = get_default_kwargs(EarlyExitSplitformerEncoder), get_default_kwargs(EarlyExitFastConformerEncoder)
    assert ours == {key: value for key, value in fast.items() if key not in ("half_rate", "chunk_range", "left_frames")}
    with pytest.raises(UsageError, match="encoder_conf: unknown key 'half_rate'"):
        encoder(SPLIT, half_rate=[2, 3])


@pytest.mark.parametrize(
    ("name", "changes"),
    [(FAST, {}), (FAST, {"half_rate": [2, 3]}), (FAST, {"chunk_range": [2, 6], "left_frames": 4}), (SPLIT, {})],
    ids=str,
)
def test_a_model_learns_and_comes_back_from_its_checkpoint(name: str, changes: dict[str, Any]) -> None:
    conf = {**SIZES, **changes, "exit_layers": [1, 2, 4], "stochastic_depth_rate": 0.1}
    settings_ = {"encoder": name, "encoder_conf": conf, "frontend": "kaldi_fbank"}
    model = tiny.model(**settings_).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    speech = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    batch = (speech, torch.tensor([8000, 6000]), torch.tensor([[3, 4, 5], [5, 3, -1]]), torch.tensor([3, 2]))
    losses, touched = [], set()
    for _ in range(40):
        loss, stats, _ = model(*batch)
        optimizer.zero_grad()
        loss.backward()
        touched |= {key for key, parameter in model.named_parameters() if parameter.grad is not None}
        optimizer.step()
        losses.append(float(loss.detach()))
    assert touched == {key for key, _ in model.named_parameters()}
    assert losses[-1] < 0.4 * losses[0] and {f"loss_exit{layer:02d}" for layer in conf["exit_layers"]} <= set(stats)
    other = tiny.model(seed=1, **settings_)
    other.load_state_dict(model.state_dict())
    losses.clear()
    with torch.no_grad():
        for made in (model.eval(), other.eval()):
            losses.append(float(made(*batch)[0]))
    assert losses[0] == losses[1]
    # One stops at the first exit beside another that goes on: what each exit says of it is what it says of it alone.
    utterances = [speech[0].numpy(), speech[1, :6000].numpy()]
    every = tiny.every_exit(model, utterances)
    assert [[row.evidence.layer for row in result.rows] for result in every] == [[1, 2, 4]] * 2
    entropies = [result.rows[0].evidence.entropy for result in every]
    stopped = recognise(TorchSession(model), DecodingConfig(EntropyPolicy(sum(entropies) / 2)), utterances)
    quick = entropies.index(min(entropies))
    assert stopped[quick].exit_layer == 1 < stopped[1 - quick].exit_layer
    for result, whole in zip(stopped, every, strict=True):
        exit_ = next(row for row in whole.rows if row.evidence.layer == result.exit_layer)
        assert result.evidence.entropy == pytest.approx(exit_.evidence.entropy, rel=1e-4)
