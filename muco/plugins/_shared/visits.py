"""Which sample of a data set each visit takes, and how many visits of an epoch it has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from muco.core.errors import MucoError, did_you_mean
from muco.core.ids import stable_id
from muco.core.sampler import Catalog, SampleRef
from muco.plugins._shared.permutation import permute


def quotas_of(weights: Mapping[str, float] | None, catalog: Catalog) -> dict[str, int]:
    """Return how many samples of each data set an epoch holds.

    Without weights, all of each; with weights as many in sum, in the proportion of the weights.
    """
    if weights is None:
        return dict(catalog)
    for name in weights:
        if name not in catalog:
            near = did_you_mean(name, list(catalog))
            raise MucoError(
                f"sampler.weights: no data set named {name!r}.{near} Data sets: {', '.join(catalog)}"
            )
    shares = {name: weights.get(name, 0.0) for name in catalog}
    whole, length = sum(shares.values()), sum(catalog.values())
    if whole <= 0:
        raise MucoError("sampler.weights: at least one data set needs a weight above zero")
    return {name: round(length * share / whole) for name, share in shares.items()}


def owner_of(sizes: Mapping[str, int], place: int) -> tuple[str, int]:
    """Return whose place it is where each name has its `sizes` in a row, and the place within them."""
    for name, size in sizes.items():
        if place < size:
            return name, place
        place -= size
    raise ValueError(f"no place {place} beyond the end")


def shuffled_visit(name: str, visit: int, *, size: int, seed: int) -> SampleRef:
    """Return the sample of a data set's visit, counted over all epochs: each lap of `size` takes all once."""
    lap, place = divmod(visit, size)
    key = stable_id("lap", str(seed), name, str(lap))
    return SampleRef(name, int(permute(np.array([place], dtype=np.int64), size, seed=key)[0]))
