"""The best validation so far: which checkpoint to keep, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, replace

from muco.config.recipe import EarlyStopping


@dataclass(frozen=True)
class Best:
    """The validation with the best score of a metric."""

    metric: str
    step: int
    score: float
    num_since: int = 0
    """Validations after it."""

    @property
    def words(self) -> str:
        """The score in words, for messages."""
        return f"{self.metric} {self.score:.3f} after step {self.step}"


def best_with(before: Best | None, metric: str, step: int, score: float, *, min_delta: float = 0.0) -> Best:
    """Return the best validation, the one of `step` included; another metric's best does not count."""
    if before is None or before.metric != metric or score > before.score + min_delta:
        return Best(metric, step, score)
    return replace(before, num_since=before.num_since + 1)


def best_of(best: Best | None, metric: str | None) -> Best | None:
    """Return `best` if it is of this metric; a resumed run may watch another one."""
    return best if best is not None and best.metric == metric else None


def must_stop(settings: EarlyStopping | None, best: Best | None) -> bool:
    """Return whether the last `patience` validations brought no improvement."""
    best = best_of(best, settings and settings.metric)
    return settings is not None and best is not None and best.num_since >= settings.patience
