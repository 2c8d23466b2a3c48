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
from muco.core.loss import LossTerms, positive_pairs
from muco.core.pairs import equal_pairs, num_equal_pairs
from muco.core.turns import TurnEmbeddings
from muco.plugins._shared.tiles import Excluded, negatives_logsumexp


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


Pairs = tuple[Tensor, Tensor]
"""(query rows, target rows), int64 [P] each."""


def contrast(
    query: TurnEmbeddings, target: TurnEmbeddings, siblings: Pairs | None, config: ContrastiveConfig
) -> LossTerms:
    """Return the softmax loss of each query turn, and what was masked.

    With positives P and negatives M of a query, and similarities s divided by the temperature,
    `loss = mean over p in P of softplus(logsumexp(s_m for m in M) - s_p)`; paper.md's formula for
    both stages. For one positive it is the cross-entropy.

    Args:
        query: N turns.
        target: M turns.
        siblings: targets that are no negatives of a query, its positives possibly among them.
        config: temperature and what becomes of duplicates.

    Raises:
        ValueError: a query is left without a negative.
    """
    positives = positive_pairs(query, target)
    if config.duplicates == "merge":
        target, column_M = _merge(target)
        positives = _joined(_moved(positives, column_M), equal_pairs(query.content_ids, target.content_ids))
        siblings = None if siblings is None else _moved(siblings, column_M)
    width = len(target)
    positive = _codes(positives, width)
    known = positive if siblings is None else torch.cat([positive, _codes(siblings, width)]).unique()
    rows, columns = known // width, known % width

    masks_equal = config.duplicates == "mask"
    contents = (query.content_ids, target.content_ids)
    excluded = Excluded(rows, columns, contents if masks_equal else None)
    query_ND, target_MD = _precise(query.vectors), _precise(target.vectors)
    negatives_N, top_N = negatives_logsumexp(query_ND, target_MD, excluded, temperature=config.temperature)
    if torch.isneginf(negatives_N).any():
        row = int(torch.isneginf(negatives_N).nonzero()[0])
        raise ValueError(f"query turn {row} has no negative: a batch needs targets of other images")

    row_P, column_P = positive // width, positive % width
    logit_P = (query_ND[row_P] * target_MD[column_P]).sum(1) / config.temperature
    loss_P = F.softplus(negatives_N[row_P] - logit_P)
    per_turn = torch.zeros_like(negatives_N).index_add(0, row_P, loss_P)
    duplicates = logit_P.new_zeros((), dtype=torch.int64)
    if masks_equal:
        told = (contents[0][rows] == contents[1][columns]).sum()
        duplicates = num_equal_pairs(*contents) - told
    best_N = torch.full_like(top_N, float("-inf")).scatter_reduce(0, row_P, logit_P.detach(), "amax")
    counts = {
        "negatives": len(query) * width - len(known) - duplicates,
        "masked_siblings": torch.as_tensor(len(known) - len(positive), device=top_N.device),
        "masked_duplicates": duplicates,
        "hits": (best_N > top_N).sum(),
    }
    return LossTerms(per_turn / row_P.bincount(minlength=len(query)), counts)


def _precise(vectors: Tensor) -> Tensor:
    """Return at least float32: half precision ties scores that differ."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def _codes(pairs: Pairs, width: int) -> Tensor:
    """Return each distinct pair as one number, ascending: by row, then by column."""
    return (pairs[0] * width + pairs[1]).unique()


def _joined(first: Pairs, second: Pairs) -> Pairs:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


def _moved(pairs: Pairs, column_M: Tensor) -> Pairs:
    return pairs[0], column_M[pairs[1]]


def _merge(target: TurnEmbeddings) -> tuple[TurnEmbeddings, Tensor]:
    """Return one target for each content, its first, and the row that each target went to."""
    contents_C, column_M = target.content_ids.unique(return_inverse=True)
    places_M = torch.arange(len(target), device=column_M.device)
    first_C = places_M.new_full((len(contents_C),), len(target))
    first_C.scatter_reduce_(0, column_M, places_M, "amin")
    return target.select(first_C), column_M
