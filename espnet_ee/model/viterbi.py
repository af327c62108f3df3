"""The best CTC alignment of known labels, for a whole batch at once."""

from __future__ import annotations

import torch

from espnet_ee.encoder.base import real_frames
from espnet_ee.model.ctc import frames_needed

NEVER = -torch.inf


@torch.no_grad()
def align(
    log_probs: torch.Tensor, olens: torch.Tensor, text: torch.Tensor, text_lengths: torch.Tensor, blank: int = 0
) -> torch.Tensor:
    """Which label every frame says on the most probable path that CTC reads as the text.

    What ``torchaudio.functional.forced_align`` does for one utterance, which on a GPU waits for each of them.

    Args:
        log_probs: (B, T, V).
        olens: real frames (B,).
        text: labels (B, U), padded with anything.
        text_lengths: (B,).
        blank: blank id.

    Returns:
        (B, T): number of the label within its text, from 0 on; -1 where a frame says blank, is padding, or belongs to an
        utterance with too few frames for its text.
    """
    real = real_frames(olens, log_probs)
    scores, skippable = trellis(log_probs, text, blank)
    # The state 2u+1 is label u, the states around it are blanks. Two further ones before them are never reached, so that
    # "one or two states back" exists everywhere.
    best = scores.new_full((len(text), 2 + scores.size(2)), NEVER)
    best[:, 2] = 0.0  # before the first frame: its blank, from where the first label is one step ahead
    steps = []
    for frame in range(log_probs.size(1)):
        before = best[:, 1:-1]
        ways = torch.stack([best[:, 2:], before, best[:, :-2].masked_fill(~skippable, NEVER)])
        most, step = ways.max(dim=0)
        is_real = real[:, frame, None]
        best = torch.cat([best[:, :2], torch.where(is_real, most + scores[:, frame], best[:, 2:])], dim=1)
        steps.append(step.masked_fill(~is_real, 0).to(torch.int8))
    ends = 2 * text_lengths.to(text.device)
    last = (ends - 1).clamp(min=0)
    reached = torch.stack([best[:, 2:].gather(1, end[:, None])[:, 0] for end in (last, ends)])
    path = trace(torch.stack(steps, dim=1), torch.where(reached[0] > reached[1], last, ends))
    aligned = frames_needed(text, text_lengths).to(path.device) <= olens.to(path.device)
    says = real & (path % 2 == 1) & aligned[:, None]
    return torch.where(says, path // 2, -1)


def trellis(log_probs: torch.Tensor, text: torch.Tensor, blank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a frame gives each state (B, T, 2U+1), and into which states a path may step from two below (B, 2U+1)."""
    utterances, labels = text.shape
    states = text.new_full((utterances, 2 * labels + 1), blank)
    states[:, 1::2] = text.clamp(min=0)
    skippable = torch.zeros_like(states, dtype=torch.bool)
    skippable[:, 3::2] = text[:, 1:] != text[:, :-1]  # between equal labels there is a blank
    scores = log_probs.float().gather(2, states[:, None].expand(-1, log_probs.size(1), -1))
    return scores, skippable


def trace(steps: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """The states of a path (B, T) from its last one (B,); ``steps`` (B, T, S) says from how many states below it came."""
    path = state.new_empty(steps.shape[:2])
    for frame in reversed(range(steps.size(1))):
        path[:, frame] = state
        state = (state - steps[:, frame].gather(1, state[:, None])[:, 0]).clamp(min=0)
    return path
