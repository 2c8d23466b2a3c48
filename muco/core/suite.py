"""A suite says what is searched for, among what, and what counts as found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from muco.core.component import Component, Kind
from muco.core.sample import Content


@dataclass(frozen=True)
class Task:
    """Queries against one pool of unique candidates.

    Raises:
        ValueError: the lists disagree, a query has no relevant candidate, or a list holds one twice.
    """

    name: str
    meta_task: str
    """The kind of task that its average is told by; MMEB's are classification, vqa, retrieval, grounding."""
    queries: Sequence[Content]
    """In memory, or made when one is asked for by its index, as an image on disk is."""
    pool: Sequence[Content]
    """Every candidate once; each is encoded once. A pool that several tasks search is one object."""
    candidates: Sequence[Sequence[int]] | None
    """For each query the indices into `pool` that it is searched among; None for the whole pool."""
    relevant: Sequence[Sequence[int]]
    """For each query the indices into `pool` that are right."""
    metric: str = "precision@1"
    """The task's score: precision@k, hit@k, recall@k, ndcg@k or mrr, as `muco.evaluation.metrics` says."""
    more_metrics: tuple[str, ...] = ()
    """Told beside it."""
    groups: tuple[str, ...] = ()
    """Averages that this task belongs to, beside those of all and of its meta-task; `turns`, say."""
    in_mean: bool = True
    """Whether the averages of all and of the meta-task count it; those of `groups` do."""

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
            among = range(len(self.pool)) if self.candidates is None else self._places(row)
            if any(place not in among for place in right):
                raise ValueError(f"task {self.name!r}: query {row} has a right answer that is no candidate")

    def _places(self, row: int) -> Container[int]:
        """Return a query's own candidates, each a place in the pool and none twice."""
        assert self.candidates is not None
        own, everything = self.candidates[row], range(len(self.pool))
        if isinstance(own, range) and own == everything:
            return everything
        places = set(own)
        if len(places) != len(own):
            raise ValueError(f"task {self.name!r}: query {row} has a candidate twice")
        if places and (min(places) < 0 or max(places) >= len(self.pool)):
            raise ValueError(f"task {self.name!r}: query {row} has a candidate that is not in the pool")
        return places


class Suite(Component, ABC):
    """A named set of tasks."""

    kind: ClassVar[Kind] = "suite"

    def verify_data(self) -> None:
        """Accept what the suite is made of; one that reads files says before training what is not right.

        A look at what can be seen at once: whether the files are there, and begin as they should.

        Raises:
            DataError: what is missing or of another layout, and how to get it.
        """

    @abstractmethod
    def tasks(self) -> Iterable[Task]:
        """Yield the tasks; the same settings give the same queries and candidates.

        Raises:
            DataError: what the suite is made of is missing, or disagrees with itself.
        """

    def members(self) -> Mapping[str, int]:
        """Return how many tasks each average has that claims a number; one over fewer is no average.

        By name: `mean` of all, `meta_<kind>` of a kind of task, and the names of `Task.groups`. An average
        that is not named here is over whatever tasks there are.
        """
        return {}

    def turns(self) -> Iterable[Sequence[Content]]:
        """Yield queries about one image, image by image, by which the agreement of its turns is measured.

        By default none: the tasks' own queries serve where several of them share an image.
        """
        return ()
