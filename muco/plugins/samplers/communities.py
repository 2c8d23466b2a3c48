"""Samples parted into communities of one size, along the edges of a neighbour graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def communities(neighbours: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """Return the samples in an order of which every `size` in a row are a community, the last the rest.

    Greedy: the first sample that is free gathers its nearest free neighbours, then theirs, until the
    community is full. Where neighbours run out first, what was gathered stays together and is filled up
    with what other samples were left with. The result depends on the arguments alone.

    Args:
        neighbours: int32 [samples, ranks], the nearest first; -1 for none.
        size: samples of a community.

    Returns:
        int64 [samples].
    """
    free = np.ones(len(neighbours), dtype=bool)
    full: list[int] = []
    short: list[int] = []
    for seed in range(len(neighbours)):
        if not free[seed]:
            continue
        free[seed] = False
        members = [seed]
        for member in members:  # it grows
            if len(members) >= size:
                break
            near = neighbours[member]
            near = near[near >= 0]
            found = list(dict.fromkeys(near[free[near]].tolist()))[: size - len(members)]
            free[found] = False
            members.extend(found)
        (full if len(members) == size else short).extend(members)
    return np.array(full + short, dtype=np.int64)
