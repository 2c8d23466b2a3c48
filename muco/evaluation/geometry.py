"""Geometry of a suite's embeddings: modality gap, alignment, uniformity, and agreement of an image's turns.

N contents, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muco.evaluation.encode import Embedded
from muco.evaluation.results import Coherence
from muco.evaluation.search.ranking import Ranking

_PER_TASK = 8192
"""Contents of a task that are measured, evenly spaced."""
_UNIFORMITY = 4096
"""Contents that uniformity is measured on, evenly spaced over those."""


@dataclass
class CoherenceMeter:
    """Collects the measures of a suite, task by task."""

    _kinds: dict[bool, Tensor] = field(default_factory=dict)
    _counts: dict[bool, int] = field(default_factory=dict)
    _seen: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    _contents: list[Tensor] = field(default_factory=list)
    _distances: list[float] = field(default_factory=list)
    _turns: list[tuple[NDArray[np.int64], NDArray[np.int64], Tensor]] = field(default_factory=list)

    def add(self, queries: Embedded, pool: Embedded, rankings: Sequence[Ranking]) -> None:
        """Add a task."""
        self._add_contents(queries)
        self._add_contents(pool)
        per_query = [
            sum(2 - 2 * right.score for right in ranking.right) / len(ranking.right) for ranking in rankings
        ]
        self._distances.append(sum(per_query) / len(per_query))
        self.add_turns(queries)

    def add_turns(self, queries: Embedded) -> None:
        """Add queries for the agreement of those that share an image."""
        with_image = np.flatnonzero(queries.image_ids)
        images, counts = np.unique(queries.image_ids[with_image], return_counts=True)
        shared = with_image[np.isin(queries.image_ids[with_image], images[counts > 1])][:_PER_TASK]
        if len(shared):
            vectors = queries.vectors.take(torch.from_numpy(shared)).double()
            self._turns.append((queries.content_ids[shared], queries.image_ids[shared], vectors))

    def result(self) -> Coherence:
        """Return the measures over all tasks, of which there must be one at least."""
        means = [self._kinds[kind] / self._counts[kind] for kind in sorted(self._kinds)]
        same, others = self._agreement()
        return Coherence(
            modality_gap=float((means[0] - means[1]).norm()) if len(means) == 2 else None,
            alignment=sum(self._distances) / len(self._distances),
            uniformity=_uniformity(torch.cat(self._contents)),
            turn_agreement=same,
            turn_agreement_others=others,
        )

    def _add_contents(self, contents: Embedded) -> None:
        """Add the contents that no earlier task had, evenly spaced if there are many."""
        _, first = np.unique(contents.content_ids, return_index=True)
        new = np.sort(first[~np.isin(contents.content_ids[first], self._seen)])
        rows = new[:: max(1, -(-len(new) // _PER_TASK))]
        self._seen = np.union1d(self._seen, contents.content_ids[rows])
        if not len(rows):
            return
        vectors = contents.vectors.take(torch.from_numpy(rows))
        self._contents.append(vectors[:: max(1, -(-len(rows) // _UNIFORMITY))])
        for kind in (False, True):
            of_kind = vectors[torch.from_numpy((contents.image_ids[rows] != 0) == kind)]
            if len(of_kind):
                self._kinds[kind] = self._kinds.get(kind, 0) + of_kind.double().sum(0)
                self._counts[kind] = self._counts.get(kind, 0) + len(of_kind)

    def _agreement(self) -> tuple[float | None, float | None]:
        """Return the mean cosines of different queries of one image, and of different images.

        The sum of cosines over the pairs of a group is the squared length of the group's sum, minus the
        squared length of each member.
        """
        if not self._turns:
            return None, None
        ids, images, vectors = zip(*self._turns, strict=True)
        ids, images, vectors = np.concatenate(ids), np.concatenate(images), torch.cat(vectors)
        first = np.sort(np.unique(ids, return_index=True)[1])
        _, group = np.unique(images[first], return_inverse=True)
        vectors = vectors[torch.from_numpy(first)]
        sums = torch.zeros(int(group.max()) + 1, vectors.shape[1], dtype=torch.float64)
        sums.index_add_(0, torch.from_numpy(group), vectors)
        sizes = np.bincount(group).astype(np.int64)
        within = float((sums**2).sum() - (vectors**2).sum())
        between = float((sums.sum(0) ** 2).sum() - (sums**2).sum())
        pairs_within = int((sizes * (sizes - 1)).sum())
        pairs_between = int(sizes.sum()) ** 2 - int((sizes**2).sum())
        return _ratio(within, pairs_within), _ratio(between, pairs_between)


def _ratio(total: float, number: int) -> float | None:
    return total / number if number else None


def _uniformity(vectors_ND: Tensor) -> float:
    rows = vectors_ND[:: max(1, -(-len(vectors_ND) // _UNIFORMITY))].double()
    if len(rows) < 2:
        return 0.0
    distances = torch.nn.functional.pdist(rows)
    return float((-2 * distances**2).exp().mean().log())
