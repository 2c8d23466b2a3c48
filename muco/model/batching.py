"""Split dialogues into chunks of similar lengths within a budget."""

from __future__ import annotations

from collections.abc import Sequence

from muco.core.backbone import Cost


def plan_chunks(costs: Sequence[Cost], budget: Cost | None, *, padded: bool) -> list[list[int]]:
    """Return the indices of the dialogues of each chunk, the longest dialogue first; no chunk is empty.

    A dialogue above `budget`, a chunk's limit, is a chunk of its own; None: all are one chunk, in order.
    `padded`: dialogues are padded to the longest one of their chunk, and padding counts.
    """
    if budget is None:
        return [list(range(len(costs)))] if costs else []
    chunks: list[list[int]] = []
    tokens = patches = 0
    for index in sorted(range(len(costs)), key=lambda index: -costs[index].tokens):
        cost = costs[index]
        # Dialogues come longest first, so the first dialogue of a chunk decides the length of padded rows.
        row = costs[chunks[-1][0]].tokens if chunks and padded else cost.tokens
        fits = chunks and tokens + row <= budget.tokens and patches + cost.patches <= budget.patches
        if not fits:
            chunks.append([])
            row, tokens, patches = cost.tokens, 0, 0
        chunks[-1].append(index)
        tokens += row
        patches += cost.patches
    return chunks
