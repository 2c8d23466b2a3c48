"""Which dialogues are encoded together: chunks of like lengths within a budget."""

from __future__ import annotations

from collections.abc import Sequence

from muco.core.backbone import Cost


def plan_chunks(costs: Sequence[Cost], budget: Cost | None, *, padded: bool) -> list[list[int]]:
    """Split dialogues into chunks.

    Args:
        costs: of each dialogue.
        budget: the most that one chunk may take; a dialogue that takes more is a chunk of its own. None
            puts all into one chunk, in order.
        padded: whether a chunk's dialogues are filled up to the longest one, which counts.

    Returns:
        The dialogues' places, chunk by chunk, the longest first; no dialogue gives no chunk.
    """
    if budget is None:
        return [list(range(len(costs)))] if costs else []
    chunks: list[list[int]] = []
    tokens = patches = 0
    for place in sorted(range(len(costs)), key=lambda place: -costs[place].tokens):
        cost = costs[place]
        # The longest comes first, so that a padded row of the chunk is as long as its first dialogue.
        row = costs[chunks[-1][0]].tokens if chunks and padded else cost.tokens
        fits = chunks and tokens + row <= budget.tokens and patches + cost.patches <= budget.patches
        if not fits:
            chunks.append([])
            row, tokens, patches = cost.tokens, 0, 0
        chunks[-1].append(place)
        tokens += row
        patches += cost.patches
    return chunks
