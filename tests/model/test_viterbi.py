"""The batched alignment against torchaudio's, utterance by utterance."""

from __future__ import annotations

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.model.ctc import frames_needed
from espnet_ee.model.viterbi import align

BLANK, VOCABULARY = 0, 5
labels = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=5)


def reference(log_probs: torch.Tensor, text: torch.Tensor) -> list[int]:
    """torchaudio's path (T, V), as numbers of labels in the text."""
    path = torchaudio.functional.forced_align(log_probs[None], text[None], blank=BLANK)[0][0].tolist()
    numbers, number = [], -1
    for before, label in zip([BLANK, *path], path, strict=False):
        number += label not in (BLANK, before)
        numbers.append(number if label != BLANK else -1)
    return numbers


@given(
    texts=st.lists(labels, min_size=1, max_size=4), seed=st.integers(0, 10**6), spare=st.lists(st.integers(0, 4), min_size=4)
)
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:.*forced_align")
def test_every_utterance_is_aligned_as_alone_and_as_by_torchaudio(texts: list[list[int]], seed: int, spare: list[int]) -> None:
    torch.manual_seed(seed)
    lengths = torch.tensor([len(text) for text in texts])
    text = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True, padding_value=-1)
    olens = frames_needed(text, lengths) + torch.tensor(spare[: len(texts)])
    log_probs = torch.randn(len(texts), int(olens.max()), VOCABULARY).log_softmax(-1)
    aligned = align(log_probs, olens, text, lengths, BLANK)
    for row, (frames, length) in enumerate(zip(olens.tolist(), lengths.tolist(), strict=True)):
        assert aligned[row, :frames].tolist() == reference(log_probs[row, :frames], text[row, :length])
        assert (aligned[row, frames:] == -1).all()


def test_too_few_frames_and_texts_without_a_label_align_nothing() -> None:
    log_probs, text = torch.randn(3, 4, VOCABULARY).log_softmax(-1), torch.tensor([[1, 1, 2], [3, -1, -1], [1, 2, 3]])
    aligned = align(log_probs, torch.tensor([3, 1, 4]), text, torch.tensor([3, 0, 2]), BLANK)
    assert (aligned[:2] == -1).all() and {0, 1} <= set(aligned[2].tolist())
    nothing = align(log_probs, torch.tensor([4, 4, 4]), text[:, :0], torch.tensor([0, 0, 0]), BLANK)
    assert (nothing == -1).all()


def test_a_path_that_steps_over_blanks_and_keeps_one_between_equal_labels() -> None:
    certain = torch.eye(VOCABULARY)[torch.tensor([1, 1, 2, 2, 0, 2])] * 20
    aligned = align(certain.log_softmax(-1)[None], torch.tensor([6]), torch.tensor([[1, 2, 2]]), torch.tensor([3]), BLANK)
    assert aligned.tolist() == [[0, 0, 1, 1, -1, 2]]
