"""Subsampling: frames before an encoder's first block, by convolutions over time."""

from __future__ import annotations

from collections.abc import Sequence

Convolutions = tuple[tuple[int, int], ...]
"""Kernel and stride of each."""

FAST: dict[int, Convolutions] = {
    4: ((3, 2), (3, 2)),
    6: ((3, 2), (5, 3)),
    8: ((3, 2), (3, 2), (3, 2)),
}
"""Those of the fast conformer, over time and over frequency, by its ``subsampling``."""


def padded(convolutions: Convolutions) -> Convolutions:
    """The same where the input is padded before its start, so that a frame sees nothing after its own stretch (``chunk_range``)."""
    return tuple((stride, stride) for _, stride in convolutions)


def reach(convolutions: Sequence[tuple[int, int]]) -> int:
    """Length that one frame is made of.

    >>> reach(FAST[4]), reach(padded(FAST[4]))
    (7, 4)
    """
    length = 1
    for kernel, stride in reversed(convolutions):
        length = (length - 1) * stride + kernel
    return length


def subsampled(length: int, convolutions: Sequence[tuple[int, int]]) -> int:
    """Frames that are left of a length.

    >>> subsampled(100, FAST[4])
    24
    """
    for kernel, stride in convolutions:
        length = max(0, (length - kernel) // stride + 1)
    return length
