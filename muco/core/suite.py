"""The interface of suites: named sets of retrieval tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from muco.core.component import Component, Kind
from muco.core.sample import Content


@dataclass(frozen=True)
class Task:
    """Queries that are searched in one pool of candidates.

    Raises ValueError if the lists differ in length, there is no query, or a query has no relevant candidate,
    a relevant one that is no candidate, or a candidate twice or outside the pool.
    """

    name: str
    meta_task: str
    """The kind of task, which has an average; in MMEB classification, vqa, retrieval or grounding."""
    queries: Sequence[Content]
    """A list, or a sequence that reads a content when it is used: `muco.io.lazy.LazyContents`."""
    pool: Sequence[Content]
    """Every candidate once. Tasks that share a pool share the object, so that it is encoded once."""
    candidates: Sequence[Sequence[int]] | None
    """For each query, indices into `pool` of its candidates; None for the whole pool."""
    relevant: Sequence[Sequence[int]]
    """For each query, indices into `pool` of the right candidates."""
    metric: str = "precision@1"
    """The task's score: precision@k, hit@k, recall@k, ndcg@k or mrr, as in docs/components/suites.md."""
    more_metrics: tuple[str, ...] = ()
    """Metrics that are reported beside the score."""
    groups: tuple[str, ...] = ()
    """Further averages that include this task, besides those of all tasks and of its `meta_task`."""
    in_mean: bool = True
    """Whether the averages of all tasks and of `meta_task` include this task; those of `groups` always do."""
    notes: tuple[str, ...] = ()
    """How the contents were made, such as the instruction before the queries; stored with the score."""
    warnings: tuple[str, ...] = ()
    """What is odd about the data; reported with the scores."""

    def __post_init__(self) -> None:
        sizes = {len(self.queries), len(self.relevant)}
        if self.candidates is not None:
            sizes.add(len(self.candidates))
        if len(sizes) != 1:
            raise ValueError(f"task {self.name!r}: queries, candidates and relevant differ in number")
        if not self.queries:
            raise ValueError(f"task {self.name!r} has no query")
        for row, right in enumerate(self.relevant):
            if not len(right):
                raise ValueError(f"task {self.name!r}: query {row} has no relevant candidate")
            among = range(len(self.pool)) if self.candidates is None else self._candidates_of(row)
            if any(index not in among for index in right):
                raise ValueError(f"task {self.name!r}: query {row} has a right answer that is no candidate")

    def _candidates_of(self, row: int) -> Container[int]:
        """Return the indices of a query's candidates; raise ValueError if one is there twice or invalid."""
        assert self.candidates is not None
        own, pool = self.candidates[row], range(len(self.pool))
        if isinstance(own, range) and own == pool:
            return pool
        indices = set(own)
        if len(indices) != len(own):
            raise ValueError(f"task {self.name!r}: query {row} has a candidate twice")
        if indices and (min(indices) < 0 or max(indices) >= len(self.pool)):
            raise ValueError(f"task {self.name!r}: query {row} has a candidate that is not in the pool")
        return indices


class Suite(Component, ABC):
    """A named set of tasks."""

    kind: ClassVar[Kind] = "suite"

    def verify_data(self) -> None:
        """Check in seconds, before training, that the suite's files exist and begin as they should.

        By default do nothing. Raise DataError if one is missing or of another layout, and say how to get it.
        """

    @abstractmethod
    def tasks(self) -> Iterable[Task]:
        """Yield the tasks, equal ones for equal settings; raise DataError if a file is missing or broken."""

    def members(self) -> Mapping[str, int]:
        """Return the number of tasks in each average; one over fewer tasks is reported as partial.

        Averages are named `mean` for all tasks, `meta_<meta_task>`, and as in `Task.groups`. One that is not
        named here may be over any number of tasks.
        """
        return {}

    def turns(self) -> Iterable[Sequence[Content]]:
        """Yield the queries about one image, for each of some images, to measure how similar they are.

        By default none; tasks whose queries share images are measured by those.
        """
        return ()
