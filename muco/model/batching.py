"""Split dialogues into chunks of similar lengths within a budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from muco.core.backbone import Cost


def plan_chunks(
    costs: Sequence[Cost],
    budget: Cost | None,
    *,
    padded: bool,
    groups: Sequence[Hashable] | None = None,
) -> list[list[int]]:
    """Return the indices of the dialogues of each chunk, the longest dialogue first; no chunk is empty.

    Args:
        costs: of the dialogues. An image that several dialogues of a chunk have counts once.
        budget: a chunk's limit; a dialogue above it is a chunk of its own. None: all are one chunk, in order.
        padded: whether dialogues are padded to the longest one of their chunk; padding counts.
        groups: of each dialogue, what it shares with others; without padding, dialogues of one group follow
            one another, the group with the longest dialogue first.
    """
    if budget is None:
        return [list(range(len(costs)))] if costs else []
    chunks: list[list[int]] = []
    tokens = patches = 0
    images = set[Hashable]()
    for index in _longest_first(costs, None if padded else groups):
        cost = costs[index]
        # Dialogues come longest first, so the first dialogue of a chunk decides the length of padded rows.
        row = costs[chunks[-1][0]].tokens if chunks and padded else cost.tokens
        new = cost.patches - sum(cost.images[image] for image in cost.images.keys() & images)
        fits = chunks and tokens + row <= budget.tokens and patches + new <= budget.patches
        if not fits:
            chunks.append([])
            row, new, tokens, patches, images = cost.tokens, cost.patches, 0, 0, set[Hashable]()
        chunks[-1].append(index)
        tokens += row
        patches += new
        images |= cost.images.keys()
    return chunks


def held_chunks(sizes: Sequence[int], held_tokens: int) -> list[int]:
    """Return the indices of the chunks whose activations are held between the passes of cached gradients.

    The largest come first. Together they have at most `held_tokens`; the largest chunk is always held.
    """
    held, total = list[int](), 0
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if not held or total + sizes[index] <= held_tokens:
            held.append(index)
            total += sizes[index]
    return held


def _longest_first(costs: Sequence[Cost], groups: Sequence[Hashable] | None) -> list[int]:
    order = sorted(range(len(costs)), key=lambda index: -costs[index].tokens)
    if groups is None:
        return order
    rank: dict[Hashable, int] = {}
    for index in order:
        rank.setdefault(groups[index], len(rank))
    return sorted(order, key=lambda index: rank[groups[index]])
