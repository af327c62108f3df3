"""N-best scores: the message without flashlight-text, and the search against brute force where it is there."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch

from espnet_ee.errors import UserError
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.posterior import PosteriorPolicy
from espnet_ee.search.beam import NBestSearch
from espnet_ee.text import collapse
from tests import tiny


def test_without_flashlight_the_policy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flashlight", "flashlight.lib", "flashlight.lib.text"):
        monkeypatch.setitem(sys.modules, name, None)
    model = tiny.model()
    with pytest.raises(UserError, match=r"policy posterior.*pip install 'espnet_ee\[nbest\]'"):
        tiny.asr(model, PosteriorPolicy(0.5))
    tiny.asr(model, EntropyPolicy(0.5))  # nobody else asks for it


class TestWithFlashlight:
    @pytest.fixture(autouse=True)
    def needs_flashlight(self) -> None:
        pytest.importorskip("flashlight.lib.text", reason="flashlight-text is built for Python 3.12 and older")

    def test_scores_are_those_of_all_alignments(self) -> None:
        log_probs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1).numpy()
        totals: dict[tuple[int, ...], float] = {}
        for path in itertools.product(range(4), repeat=5):
            text = tuple(collapse(path))
            totals[text] = np.logaddexp(totals.get(text, -np.inf), sum(log_probs[t, v] for t, v in enumerate(path)))
        # A beam that can hold every prefix prunes nothing.
        found = NBestSearch(600, 4).scores(log_probs)
        assert found == pytest.approx(sorted(totals.values(), reverse=True)[: len(found)], rel=1e-4)
        assert len(found) > 10

    def test_nothing_to_search(self) -> None:
        search = NBestSearch(4, 5)
        assert search.scores(np.zeros((0, 5), np.float32)) == ()
        assert search.scores(np.full((3, 5), np.nan, np.float32)) == ()
        one = np.full((3, 5), np.log(0.2), np.float32)
        assert search.scores(one) != ()
        one[1, 2] = np.nan
        assert search.scores(one) == ()

    def test_ten_tokens_are_tried_in_a_frame(self) -> None:
        frame = np.log(np.arange(12, 0, -1, dtype=np.float32) / 78)[None]
        assert len(NBestSearch(100, 12).scores(frame)) == 10

    def test_what_falls_far_behind_is_dropped(self) -> None:
        search = NBestSearch(100, 3)
        assert search.scores(np.array([[0, -49.5, -90]], np.float32)) == (0.0, -49.5)
        assert search.scores(np.array([[0, -50.5, -90]], np.float32)) == (0.0,)

    @pytest.mark.parametrize("nbest", [1, 2, 5])
    def test_it_gives_no_more_than_was_asked_for(self, nbest: int) -> None:
        log_probs = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)).log_softmax(-1).numpy()
        scores = NBestSearch(nbest, 6).scores(log_probs)
        assert len(scores) == nbest and list(scores) == sorted(scores, reverse=True)

    def test_any_token_can_be_the_blank(self) -> None:
        log_probs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).log_softmax(-1).numpy()
        moved = np.roll(log_probs, -1, axis=1)  # token 0 becomes token 3
        assert NBestSearch(600, 4, blank=3).scores(moved) == pytest.approx(NBestSearch(600, 4).scores(log_probs), rel=1e-5)

    def test_the_online_policy_reads_it_and_does_not_see_the_batch(self) -> None:
        random = np.random.default_rng(0)
        speech = [random.standard_normal(length).astype(np.float32) * 0.1 for length in (9000, 16000, 5000)]
        model = tiny.model(seed=2)
        whole = tiny.every_exit(model, speech, nbest=4)
        values = sorted(PosteriorPolicy(0.0, nbest=4).level([row.evidence]) for one in whole for row in one.rows[:-1])
        assert all(np.isfinite(values))
        for threshold in (values[0] - 1e-4, (values[2] + values[3]) / 2, values[-1] + 1e-4):
            policy = PosteriorPolicy(threshold, nbest=4)
            batched = tiny.asr(model, policy).recognise(speech)
            expected = [next((r for r in one.rows[:-1] if policy.should_stop([r.evidence])), one.rows[-1]) for one in whole]
            assert [r.exit_layer for r in batched] == [row.evidence.layer for row in expected]
            assert [r.text for r in batched] == [row.hypothesis for row in expected]
