"""One model both ways: whole utterances, and chunk by chunk with nothing but caches of the past."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.encoder.chunk import BlockCache, chunk_mask, chunk_of, drawn_chunk
from espnet_ee.encoder.fast_conformer import EarlyExitFastConformerEncoder
from espnet_ee.errors import UsageError, UserError
from tests import tiny

SIZES: dict[str, Any] = {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 4, "cnn_module_kernel": 7}
KINDS: list[dict[str, Any]] = [
    {},
    {"convolution_norm": "layer", "subsampling": 8},
    {"half_rate": [3, 4], "left_frames": 5},
    {"half_rate": [2, 3]},
    {"left_frames": 0, "cnn_module_kernel": 1},
]
every_kind = pytest.mark.parametrize("changes", KINDS, ids=str)


def encoder(seed: int = 0, **changes: Any) -> EarlyExitFastConformerEncoder:
    torch.manual_seed(seed)
    conf = {"exit_layers": [1, 2, 4], "chunk_range": [2, 6], "left_frames": 6, **SIZES, **changes}
    made = EarlyExitFastConformerEncoder(80, **conf)
    tiny.stir_batch_norm(made)
    return made.eval()


def features(made: EarlyExitFastConformerEncoder, frames: int, seed: int = 1) -> torch.Tensor:
    """Features that just make so many frames."""
    return torch.randn(1, made.min_frames + (frames - 1) * made.stride, 80, generator=torch.Generator().manual_seed(seed))


def outputs(made: EarlyExitFastConformerEncoder, xs: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [output.hs for output in made.iter_exits(xs, torch.tensor([xs.size(1)]))]


@every_kind
@pytest.mark.parametrize("chunk", [2, 4, 10])
def test_a_frame_sees_its_chunk_and_nothing_after_it(changes: dict[str, Any], chunk: int) -> None:
    made = encoder(**changes)
    made.chunk = chunk
    xs = features(made, 31)
    before = outputs(made, xs)
    for last in (chunk, 2 * chunk):  # frames of whole chunks
        changed = xs.clone()
        end = made.min_frames + (last - 1) * made.stride
        changed[:, end:] += 1.0
        for one, other in zip(before, outputs(made, changed), strict=True):
            torch.testing.assert_close(one[:, :last], other[:, :last], atol=1e-6, rtol=1e-6)
        changed = xs.clone()
        changed[:, end - 1] += 1.0
        for one, other in zip(before, outputs(made, changed), strict=True):
            assert not torch.allclose(one[:, last - chunk], other[:, last - chunk], atol=1e-4)


@every_kind
def test_the_batch_does_not_matter(changes: dict[str, Any]) -> None:
    made = encoder(**changes)
    made.chunk = 4
    # Padding of which no real frame is within sight.
    tiny.assert_the_batch_does_not_matter(made, (301, 97, 63, 40, 17))
    xs, ilens = torch.randn(3, 300, 80), torch.tensor([300, 150, 40])
    with torch.no_grad():
        whole = list(made.iter_exits(xs, ilens))
        state = whole[0].state.select([2, 1])
        for expected in whole[1:]:
            kept = made.advance(state)
            state = kept.state
            for row, source in enumerate((2, 1)):
                count = int(kept.olens[row])
                torch.testing.assert_close(kept.hs[row, :count], expected.hs[source, :count], atol=1e-5, rtol=1e-4)
    assert all(output.hs.isfinite().all() for output in whole)


@given(frames=st.integers(1, 60), chunk=st.integers(1, 9), left=st.integers(0, 12), kernel=st.sampled_from([1, 3, 15]))
@settings(max_examples=40, deadline=None)
def test_chunk_by_chunk_is_all_at_once(frames: int, chunk: int, left: int, kernel: int) -> None:
    made = encoder(left_frames=left, cnn_module_kernel=kernel)
    made.chunk = chunk
    xs = features(made, frames)
    expected, caches, parts = outputs(made, xs), [made.new_cache() for _ in range(4)], []
    with torch.no_grad():
        hidden = made.embed_features(xs)
        for first in range(0, frames, chunk):
            part = hidden[:, first : first + chunk]
            for number, cache in enumerate(caches, 1):
                part = made.stream_block(number, part, first, cache)
            parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected[-1], atol=1e-5, rtol=1e-5)


def test_what_a_block_remembers_is_bounded() -> None:
    made = encoder(left_frames=9)
    cache, sizes = made.new_cache(), []
    assert isinstance(cache, BlockCache) and cache.size == 0
    for step in range(40):
        made.stream_block(1, torch.randn(1, 4, 16), 4 * step, cache)
        sizes.append(cache.size)
    assert set(sizes[3:]) == {2 * 16 * 9 + 16 * 3} and sizes[0] < sizes[3]


@pytest.mark.parametrize("changes", [{}, {"subsampling": 6}, {"subsampling": 8, "half_rate": [2, 3]}], ids=str)
def test_without_chunks_it_is_the_offline_model_one_look_earlier(changes: dict[str, Any]) -> None:
    made, offline, xs = encoder(**changes), encoder(**changes, chunk_range=[]), features(encoder(**changes), 30)
    offline.load_state_dict(made.state_dict())
    assert offline.look_back == 0 and made.look_back == offline.min_frames - made.stride
    before = xs[:, :1].expand(-1, made.look_back, -1)
    for one, other in zip(outputs(made, xs), outputs(offline, torch.cat([before, xs], dim=1)), strict=True):
        torch.testing.assert_close(one, other)


def test_without_chunks_it_is_another_pass_but_the_same_model() -> None:
    made, xs = encoder(), features(encoder(), 30)
    whole = outputs(made, xs)
    made.chunk = 100  # more than there is
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(whole, outputs(made, xs), strict=True))
    made.chunk = 2
    assert not torch.allclose(whole[-1], outputs(made, xs)[-1], atol=1e-3)


def test_chunks_are_drawn_in_training_alone() -> None:
    torch.manual_seed(0)
    draws = Counter(drawn_chunk((4, 8), 2) for _ in range(2000))
    assert set(draws) == {None, 4, 6, 8} and 900 < draws[None] < 1100
    assert min(draws.values()) > 250
    assert {drawn_chunk((3, 3), 1) for _ in range(20)} == {None, 3}
    made, seen = encoder(dropout_rate=0, positional_dropout_rate=0, attention_dropout_rate=0).train(), set()
    for _ in range(40):
        chunks = made.start(features(made, 30), torch.tensor([features(made, 30).size(1)])).carry.chunks
        seen.add(None if chunks is None else int(chunks[0].sum()))
    assert seen == {None, 2, 3, 4, 5, 6}
    plain = encoder(chunk_range=[], positional_dropout_rate=0).train()
    state = torch.get_rng_state()
    assert plain.start(features(plain, 30), torch.tensor([123])).carry.chunks is None
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn: trainings as before, to the last bit


def test_the_mask_is_what_it_says() -> None:
    mask = chunk_mask(23, 5, 3, torch.device("cpu"))
    for query in range(23):
        for key in range(23):
            start = query // 5 * 5
            assert bool(mask[query, key]) == (start - 3 <= key < start + 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_range": [2]}, r"chunk_range is \[2\]; give the frames of the shortest and of the longest"),
        ({"chunk_range": [6, 2]}, r"chunk_range is \[6, 2\]"),
        ({"chunk_range": [0, 2]}, r"chunk_range is \[0, 2\]"),
        ({"chunk_range": [True, 2]}, r"chunk_range is \[True, 2\]"),
        ({"chunk_range": "dynamic"}, "chunk_range is 'dynamic'"),
        ({"chunk_range": [2, 5], "half_rate": [2, 3]}, r"chunk_range \[2, 5\] with half_rate: give even numbers"),
        ({"left_frames": -1}, "left_frames is -1"),
        ({"left_frames": 1.5}, "left_frames is 1.5"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        encoder(**changes)


def test_how_long_a_chunk_may_be() -> None:
    assert chunk_of((4, 24), 1, 0.04, 320) == 8 and chunk_of((4, 24), 2, 0.04, 640) == 16
    for step, milliseconds, least in ((1, 330, 40), (2, 360, 80), (1, 0, 40), (1, -40, 40)):
        with pytest.raises(UsageError, match=f"a chunk of {milliseconds} ms: give a multiple of {least} ms"):
            chunk_of((4, 24), step, 0.04, milliseconds)
    with pytest.raises(UserError, match="was not trained for chunks"):
        chunk_of(None, 1, 0.04, 320)
    with pytest.raises(UserError, match="raw-audio"):
        chunk_of((4, 24), 1, None, 320)
