"""How coherent a suite's embeddings are, whatever they score: gaps, spread, and an image's turns together.

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
"""Candidates of a task that are looked at, evenly spaced over its pool."""
_SPREAD = 4096
"""Contents whose spread is measured, evenly spaced over those looked at."""


@dataclass
class CoherenceMeter:
    """Takes in a suite, task by task."""

    _kinds: dict[bool, Tensor] = field(default_factory=dict)
    _counts: dict[bool, int] = field(default_factory=dict)
    _seen: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    _contents: list[Tensor] = field(default_factory=list)
    _distances: list[float] = field(default_factory=list)
    _turns: list[tuple[NDArray[np.int64], NDArray[np.int64], Tensor]] = field(default_factory=list)

    def add(self, queries: Embedded, pool: Embedded, rankings: Sequence[Ranking]) -> None:
        """Take in a task."""
        self._look_at(queries)
        self._look_at(pool)
        per_query = [
            sum(2 - 2 * right.score for right in ranking.right) / len(ranking.right) for ranking in rankings
        ]
        self._distances.append(sum(per_query) / len(per_query))
        self.add_turns(queries)

    def add_turns(self, queries: Embedded) -> None:
        """Take in queries some of which may be about one image."""
        with_image = np.flatnonzero(queries.image_ids)
        images, number = np.unique(queries.image_ids[with_image], return_counts=True)
        shared = with_image[np.isin(queries.image_ids[with_image], images[number > 1])][:_PER_TASK]
        if len(shared):
            vectors = queries.vectors.take(torch.from_numpy(shared)).double()
            self._turns.append((queries.content_ids[shared], queries.image_ids[shared], vectors))

    def result(self) -> Coherence:
        """Return the measures of what was taken in, one task at least."""
        means = [self._kinds[kind] / self._counts[kind] for kind in sorted(self._kinds)]
        same, others = self._agreement()
        return Coherence(
            modality_gap=float((means[0] - means[1]).norm()) if len(means) == 2 else None,
            alignment=sum(self._distances) / len(self._distances),
            uniformity=_uniformity(torch.cat(self._contents)),
            turn_agreement=same,
            turn_agreement_others=others,
        )

    def _look_at(self, contents: Embedded) -> None:
        """Take in contents that no task before had, evenly spaced where there are many."""
        _, first = np.unique(contents.content_ids, return_index=True)
        fresh = np.sort(first[~np.isin(contents.content_ids[first], self._seen)])
        places = fresh[:: max(1, -(-len(fresh) // _PER_TASK))]
        self._seen = np.union1d(self._seen, contents.content_ids[places])
        if not len(places):
            return
        vectors = contents.vectors.take(torch.from_numpy(places))
        self._contents.append(vectors[:: max(1, -(-len(places) // _SPREAD))])
        for kind in (False, True):
            of_kind = vectors[torch.from_numpy((contents.image_ids[places] != 0) == kind)]
            if len(of_kind):
                self._kinds[kind] = self._kinds.get(kind, 0) + of_kind.double().sum(0)
                self._counts[kind] = self._counts.get(kind, 0) + len(of_kind)

    def _agreement(self) -> tuple[float | None, float | None]:
        """Return the mean cosines of different queries of one image, and of different images.

        The sum over pairs of a group is the squared length of its sum, less what each has with itself.
        """
        if not self._turns:
            return None, None
        ids, images, vectors = (
            np.concatenate([each[0] for each in self._turns]),
            np.concatenate([each[1] for each in self._turns]),
            torch.cat([each[2] for each in self._turns]),
        )
        _, first = np.unique(ids, return_index=True)
        first = np.sort(first)
        _, group = np.unique(images[first], return_inverse=True)
        vectors = vectors[torch.from_numpy(first)]
        sums = torch.zeros(int(group.max()) + 1, vectors.shape[1], dtype=torch.float64)
        sums.index_add_(0, torch.from_numpy(group), vectors)
        number = np.bincount(group).astype(np.int64)
        within = float((sums**2).sum() - (vectors**2).sum())
        between = float((sums.sum(0) ** 2).sum() - (sums**2).sum())
        pairs_within = int((number * (number - 1)).sum())
        pairs_between = int(number.sum()) ** 2 - int((number**2).sum())
        return (
            within / pairs_within if pairs_within else None,
            between / pairs_between if pairs_between else None,
        )


def _uniformity(vectors_ND: Tensor) -> float:
    rows = vectors_ND[:: max(1, -(-len(vectors_ND) // _SPREAD))].double()
    if len(rows) < 2:
        return 0.0
    distances = torch.nn.functional.pdist(rows)
    return float((-2 * distances**2).exp().mean().log())
