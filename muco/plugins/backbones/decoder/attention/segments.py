"""The sequences of a packed row: which tokens each token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from muco.plugins.backbones.decoder.token_sequence import PREFIX


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a row. They attend to the prefix and, causally or not, to one another.

    A dialogue is one segment. With isolated turns, its prefix and each turn are segments.
    """

    prefix: range
    """Indices into the row; empty for a dialogue or a prefix."""
    own: range
    """Indices into the row, after those of the prefix."""

    @property
    def num_keys(self) -> int:
        """The number of tokens that the last token may attend to."""
        return len(self.prefix) + len(self.own)


def segments_of(cu_seqlens: Tensor, segment_ids: Tensor | None) -> list[Segment]:
    """Return the segments of a row of T tokens, in order; each token is in the `own` of one.

    Args:
        cu_seqlens: int64 [B + 1], the start of each dialogue, and T.
        segment_ids: int64 [1, T]; None if no turn is isolated.
    """
    dialogues = pairwise(cu_seqlens.tolist())
    if segment_ids is None:
        return [Segment(range(start, start), range(start, stop)) for start, stop in dialogues]
    ids, segments = segment_ids[0].tolist(), list[Segment]()
    for start, stop in dialogues:
        prefix = empty = range(start, start)
        for own in _runs(ids, start, stop):
            is_prefix = ids[own.start] == PREFIX
            prefix = own if is_prefix else prefix
            segments.append(Segment(empty if is_prefix else prefix, own))
    return segments


def _runs(ids: list[int], start: int, stop: int) -> list[range]:
    """Return the runs of equal ids between two indices."""
    changes = [index for index in range(start + 1, stop) if ids[index] != ids[index - 1]]
    return [range(*ends) for ends in pairwise([start, *changes, stop])]
