"""The ranks of a query's right answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RelevantRank:
    """The rank of one right answer among the wrong candidates of its query."""

    score: float
    above: int
    """Wrong candidates that score higher."""
    tied: int
    """Wrong candidates that score the same."""
    tied_before: int
    """Those of them that come earlier in the list."""


@dataclass(frozen=True)
class Ranking:
    """The ranks of one query's right answers."""

    right: tuple[RelevantRank, ...]
    """At least one, by (-score, position)."""
    num_candidates: int
    top: tuple[tuple[int, float], ...] = ()
    """The best candidates as (index into the pool, score), by (-score, position); empty unless requested."""

    @property
    def rank(self) -> int:
        """The rank of the best right answer, from 1, ahead of the wrong candidates that it ties with."""
        return 1 + self.right[0].above

    @property
    def is_tied(self) -> bool:
        """Whether a right and a wrong candidate share the top score."""
        return self.right[0].above == 0 and self.right[0].tied > 0
