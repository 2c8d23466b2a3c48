"""How right answers stand among the candidates of a query."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RelevantRank:
    """How one right answer stands among its query's wrong candidates."""

    score: float
    above: int
    """Wrong candidates that score more."""
    tied: int
    """Wrong candidates that score the same."""
    tied_before: int
    """Those of them that come earlier in the list."""


@dataclass(frozen=True)
class Ranking:
    """How one query's right answers stand among its candidates."""

    right: tuple[RelevantRank, ...]
    """At least one, by (-score, position)."""
    num_candidates: int
    top: tuple[tuple[int, float], ...] = ()
    """The best candidates, as (index into the pool, score), by (-score, position), where asked for."""

    @property
    def rank(self) -> int:
        """The best rank that the best right answer can claim, from 1."""
        return 1 + self.right[0].above

    @property
    def is_tied(self) -> bool:
        """Whether a right answer shares the very top with a wrong one."""
        return self.right[0].above == 0 and self.right[0].tied > 0
