"""A suite says what is searched for, among what, and what counts as found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from muco.core.component import Component, Kind
from muco.core.sample import Content

Metric = Literal["precision@1"]


@dataclass(frozen=True)
class Task:
    """Queries against one pool of unique candidates.

    Raises:
        ValueError: the lists disagree, or a query has no relevant candidate.
    """

    name: str
    meta_task: str
    """One of MMEB's: classification, vqa, retrieval, grounding."""
    queries: Sequence[Content]
    pool: Sequence[Content]
    """Every candidate once; each is encoded once."""
    candidates: Sequence[Sequence[int]] | None
    """For each query the indices into `pool` that it is searched among; None for the whole pool."""
    relevant: Sequence[Sequence[int]]
    """For each query the indices into `pool` that are right."""
    metric: Metric = "precision@1"
    groups: tuple[str, ...] = ()
    """Averages that this task belongs to, beside the mean of all; `turns`, say."""

    def __post_init__(self) -> None:
        sizes = {len(self.queries), len(self.relevant)}
        if self.candidates is not None:
            sizes.add(len(self.candidates))
        if len(sizes) != 1:
            raise ValueError(f"task {self.name!r}: queries, candidates and relevant differ in number")
        if not self.queries:
            raise ValueError(f"task {self.name!r} has no query")
        for row, right in enumerate(self.relevant):
            if not right:
                raise ValueError(f"task {self.name!r}: query {row} has no relevant candidate")
            if self.candidates is not None and not set(right) <= set(self.candidates[row]):
                raise ValueError(f"task {self.name!r}: query {row} has a right answer that is no candidate")


class Suite(Component, ABC):
    """A named set of tasks."""

    kind: ClassVar[Kind] = "suite"

    @abstractmethod
    def tasks(self) -> Iterable[Task]:
        """Yield the tasks; the same settings give the same queries and candidates."""
