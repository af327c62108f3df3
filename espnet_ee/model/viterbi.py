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

    What ``torchaudio.functional.forced_align`` does for one utterance, which on a GPU waits for each of them. A path goes
    through states: 2u+1 is label u of the text, those around it are blanks.

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
    fits = frames_needed(text, text_lengths) <= olens
    ends = 2 * torch.where(fits, text_lengths, 0)  # what does not fit is aligned as if it were empty
    states = text.new_full((len(text), 2 * text.size(1) + 1), blank)
    states[:, 1::2] = text.clamp(min=0)
    scores = frame_scores(log_probs, olens, states, ends)
    refused = scores.new_zeros(3, *states.shape)  # from two states below, from the one below, from the same
    refused[0] = NEVER
    refused[0, :, 3::2].masked_fill_(text[:, 1:] != text[:, :-1], 0.0)  # between equal labels there is a blank
    # Two states below the first are never reached, so that there is one to come from everywhere.
    best = scores.new_full((len(text), 2 + states.size(1)), NEVER)
    best[:, 2] = 0.0
    reached, ways = torch.empty_like(refused), []
    for frame in range(scores.size(1)):
        most, way = torch.add(best.unfold(1, 3, 1).permute(2, 0, 1), refused, out=reached).max(dim=0)
        torch.add(most, scores[:, frame], out=best[:, 2:])
        ways.append(way.to(torch.int8))
    path = trace(torch.stack(ways, dim=1), ends)[:, :-1]
    return torch.where(path % 2 == 1, path // 2, -1)


def frame_scores(log_probs: torch.Tensor, olens: torch.Tensor, states: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """What each frame, and one more, gives each state (B, T+1, S); after an utterance's own frames only its end is possible."""
    frames = log_probs.size(1)
    scores = log_probs.float().gather(2, states[:, None].expand(-1, frames, -1))
    scores = torch.nn.functional.pad(scores, (0, 0, 0, 1))
    after = torch.full_like(scores[:, 0], NEVER).scatter(1, ends[:, None], 0.0)
    return torch.where(real_frames(olens, scores)[..., None], scores, after[:, None])


def trace(ways: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """The states of a path (B, T) from its last one (B,); ``ways`` (B, T, S): 2 from the same state, 1 from the one below."""
    path = state.new_empty(ways.shape[:2])
    for frame in reversed(range(ways.size(1))):
        path[:, frame] = state
        # Below the first only where a score is no number; that is for the loss to say.
        state = (state - 2 + ways[:, frame].gather(1, state[:, None])[:, 0]).clamp(min=0)
    return path
