"""What the softmax losses share: who is positive, who is negative, and the formula.

N query turns, M target turns, C distinct target contents.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from muco.core.component import ComponentConfig, Feature
from muco.core.loss import LossTerms, same_turn
from muco.core.turns import TurnEmbeddings


class ContrastiveConfig(ComponentConfig):
    """The settings of a softmax loss."""

    temperature: PositiveFloat = 0.02
    """Divides the cosine similarities; no unit."""
    duplicates: Literal["keep", "mask", "merge"] = "mask"
    """Targets with the content of a query's own: keep them as negatives, mask them, or merge all
    targets of one content into one. merge needs targets that are encoded independently."""


def needs_of(config: ContrastiveConfig) -> frozenset[Feature]:
    """Return what the settings need of the packer: equal contents must have equal embeddings."""
    return frozenset({"independent_targets"} if config.duplicates == "merge" else ())


def contrast(
    query: TurnEmbeddings, target: TurnEmbeddings, sibling_NM: Tensor, config: ContrastiveConfig
) -> LossTerms:
    """Return the softmax loss of each query turn, and what was masked.

    With positives P and negatives M of a query, and similarities s divided by the temperature,
    `loss = mean over p in P of softplus(logsumexp(s_m for m in M) - s_p)`; paper.md's formula for
    both stages. For one positive it is the cross-entropy.

    Args:
        query: N turns.
        target: M turns.
        sibling_NM: bool; targets that are no negatives of a query, its positives possibly among them.
        config: temperature and what becomes of duplicates.

    Raises:
        ValueError: a query is left without a negative.
    """
    positive_NM = same_turn(query, target) & ~target.is_negative
    equal_NM = query.content_ids[:, None] == target.content_ids
    if config.duplicates == "merge":
        target, positive_NM, sibling_NM, equal_NM = _merge(target, positive_NM, sibling_NM, equal_NM)
        positive_NM = positive_NM | equal_NM
    sibling_NM = sibling_NM & ~positive_NM
    duplicate_NM = equal_NM & ~positive_NM & ~sibling_NM
    if config.duplicates == "keep":
        duplicate_NM = torch.zeros_like(duplicate_NM)
    negative_NM = ~(positive_NM | sibling_NM | duplicate_NM)
    if not negative_NM.any(1).all():
        row = int((~negative_NM.any(1)).nonzero()[0])
        raise ValueError(f"query turn {row} has no negative: a batch needs targets of other images")

    logits_NM = _precise(query.vectors) @ _precise(target.vectors).T / config.temperature
    negatives_N1 = logits_NM.masked_fill(~negative_NM, float("-inf")).logsumexp(1, keepdim=True)
    loss_NM = F.softplus(negatives_N1 - logits_NM).masked_fill(~positive_NM, 0.0)
    counts = {
        "negatives": negative_NM.sum(),
        "masked_siblings": sibling_NM.sum(),
        "masked_duplicates": duplicate_NM.sum(),
        "hits": _hits(logits_NM.detach(), positive_NM, negative_NM),
    }
    return LossTerms(loss_NM.sum(1) / positive_NM.sum(1), counts)


def _precise(vectors: Tensor) -> Tensor:
    """Return at least float32: half precision ties scores that differ."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def _hits(logits_NM: Tensor, positive_NM: Tensor, negative_NM: Tensor) -> Tensor:
    """Return how many queries rank a positive above all their negatives."""
    best_N = logits_NM.masked_fill(~positive_NM, float("-inf")).amax(1)
    return (best_N > logits_NM.masked_fill(~negative_NM, float("-inf")).amax(1)).sum()


def _merge(target: TurnEmbeddings, *masks_NM: Tensor) -> tuple[TurnEmbeddings, Tensor, Tensor, Tensor]:
    """Return one target for each content, and the masks over those: true where any merged one was."""
    contents_C, column_M = target.content_ids.unique(return_inverse=True)
    places_M = torch.arange(len(target), device=column_M.device)
    first_C = places_M.new_full((len(contents_C),), len(target))
    first_C.scatter_reduce_(0, column_M, places_M, "amin")
    merged = [
        mask.new_zeros(len(mask), len(contents_C), dtype=torch.int32)
        .index_add_(1, column_M, mask.int())
        .bool()
        for mask in masks_NM
    ]
    return target.select(first_C), merged[0], merged[1], merged[2]
