"""Which dialogues are encoded together: chunks of like lengths within a budget."""

from __future__ import annotations

from collections.abc import Sequence

from muco.core.backbone import Cost


def plan_chunks(costs: Sequence[Cost], budget: Cost | None) -> list[list[int]]:
    """Split dialogues into chunks.

    Args:
        costs: of each dialogue.
        budget: the most that one chunk may take, padding to its longest dialogue included; a dialogue
            that takes more is a chunk of its own. None puts all into one chunk, in order.

    Returns:
        The dialogues' places, chunk by chunk, the longest first; no dialogue gives no chunk.
    """
    if budget is None:
        return [list(range(len(costs)))] if costs else []
    chunks: list[list[int]] = []
    width = patches = 0
    for place in sorted(range(len(costs)), key=lambda place: -costs[place].tokens):
        cost = costs[place]
        fits = (
            chunks
            and (len(chunks[-1]) + 1) * width <= budget.tokens
            and patches + cost.patches <= budget.patches
        )
        if not fits:
            chunks.append([])
            width, patches = cost.tokens, 0
        chunks[-1].append(place)
        patches += cost.patches
    return chunks
