"""Communities: groups of one size, gathered along the edges of a neighbour graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def communities(neighbours: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """Return the samples ordered so that every `size` consecutive ones form a community; the rest is last.

    Greedy: the first free sample gathers its nearest free neighbours, then theirs, until the community is
    full. If neighbours run out first, the incomplete group stays together at the end, followed by the next
    incomplete group. The result depends only on the arguments.

    Args:
        neighbours: int32 [samples, ranks], nearest first; -1 for none.
        size: number of samples in a community.

    Returns:
        int64 [samples].
    """
    free = np.ones(len(neighbours), dtype=bool)
    complete: list[int] = []
    incomplete: list[int] = []
    for seed in range(len(neighbours)):
        if not free[seed]:
            continue
        free[seed] = False
        members = [seed]
        for member in members:  # members are appended inside the loop
            if len(members) >= size:
                break
            near = neighbours[member]
            near = near[near >= 0]
            new = list(dict.fromkeys(near[free[near]].tolist()))[: size - len(members)]
            free[new] = False
            members.extend(new)
        (complete if len(members) == size else incomplete).extend(members)
    return np.array(complete + incomplete, dtype=np.int64)
