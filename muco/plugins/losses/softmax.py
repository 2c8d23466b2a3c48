"""What the contrastive losses share: who is positive, who is negative, and the softmax formula.

N query turns, M target turns, P pairs of a query and its positive, C distinct target contents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from muco.core.component import ComponentConfig, Feature
from muco.core.loss import Loss, LossTerms, positive_pairs
from muco.core.pairs import equal_pairs, num_equal_pairs
from muco.core.turns import TurnEmbeddings
from muco.plugins.losses.tiles import Excluded, negatives_logsumexp

Mask = Literal["same_group", "none"]
Forms = Literal["joint", "separate"]


class PairingConfig(ComponentConfig):
    """What becomes of targets with the content of a query's own."""

    duplicates: Literal["keep", "mask", "merge"] = "mask"
    """Targets with the content of a query's own: keep them as negatives, mask them, or merge all
    targets of one content into one. merge needs targets that are encoded independently."""


class ContrastiveConfig(PairingConfig):
    """The settings of a softmax loss."""

    temperature: PositiveFloat = 0.02
    """Divides the cosine similarities; no unit."""
    symmetric: bool = False
    """Score the targets against all queries too, and take the mean of both directions."""
    false_negative_margin: NonNegativeFloat | None = None
    """A target more similar to the query than its best positive, by more than this, is no negative: it is
    likely right. None takes none out; 0.1 is customary."""

    @model_validator(mode="after")
    def _one_query_a_target(self) -> ContrastiveConfig:
        if self.symmetric and self.duplicates == "merge":
            raise ValueError(
                "`symmetric` goes with `duplicates: mask` or `keep`: the queries of a merged target differ, "
                "and cannot be merged in turn"
            )
        return self


class PairingLoss(Loss):
    """A loss with the settings of `PairingConfig`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        """Return what is asked of the packer: to be merged, equal contents must have equal embeddings."""
        return frozenset({"independent_targets"} if config.duplicates == "merge" else ())


class ContrastiveLoss(PairingLoss):
    """A loss with the settings of `ContrastiveConfig`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.symmetric = config.symmetric


@dataclass(frozen=True)
class Pairing:
    """Which targets are a query's positives, and which are neither positive nor negative."""

    queries: Tensor
    """[N, D], float32 or finer."""
    targets: Tensor
    """[M, D], or [C, D] where duplicates are merged."""
    rows: Tensor
    """int64 [P]: the queries of the positives, ascending."""
    columns: Tensor
    """int64 [P]: the positives."""
    excluded: Excluded
    """The positives among them."""
    counts: Mapping[str, Tensor]
    """negatives, masked_siblings, masked_duplicates."""

    def similarities(self) -> Tensor:
        """Return those of each query and its positive, [P], with gradient."""
        return (self.queries[self.rows] * self.targets[self.columns]).sum(1)


def pair_up(query: TurnEmbeddings, target: TurnEmbeddings, *, mask: Mask, duplicates: str) -> Pairing:
    """Return the positives P and what is masked; every other target is a negative.

    Args:
        query: N turns.
        target: M turns.
        mask: whether the other targets of a query's images are negatives; hard negatives always are.
        duplicates: what becomes of targets with the content of a query's own.
    """
    positives, siblings = positive_pairs(query, target), _none_of(query)
    if mask == "same_group":
        rows, columns = equal_pairs(query.group_ids, target.group_ids)
        sibling = ~target.is_negative[columns]
        siblings = rows[sibling], columns[sibling]
    if duplicates == "merge":
        target, column_M = _merge(target)
        positives = _joined(_moved(positives, column_M), equal_pairs(query.content_ids, target.content_ids))
        siblings = _moved(siblings, column_M)
    width = len(target)
    positive = _codes(positives, width)
    known = _codes(_joined(positives, siblings), width)
    rows, columns = known // width, known % width

    masks_equal = duplicates == "mask"
    contents = (query.content_ids, target.content_ids)
    equal = torch.zeros((), dtype=torch.int64, device=rows.device)
    if masks_equal:
        equal = num_equal_pairs(*contents) - (contents[0][rows] == contents[1][columns]).sum()
    counts = {
        "negatives": len(query) * width - len(known) - equal,
        "masked_siblings": equal.new_tensor(len(known) - len(positive)),
        "masked_duplicates": equal,
    }
    return Pairing(
        _precise(query.vectors),
        _precise(target.vectors),
        positive // width,
        positive % width,
        Excluded(rows, columns, contents if masks_equal else None),
        counts,
    )


def contrast(
    query: TurnEmbeddings,
    target: TurnEmbeddings,
    config: ContrastiveConfig,
    *,
    mask: Mask = "none",
    forms: Forms = "joint",
    hardness: float = 0.0,
) -> LossTerms:
    """Return the softmax loss of each query turn, and what was masked.

    With positives P and negatives M of a query, similarities s and temperature t,
    `loss = mean over p in P of softplus(logsumexp(s_m / t for m in M) - s_p / t)`: the formula of both
    stages of the paper. For one positive it is the cross-entropy.

    Args:
        query: N turns.
        target: M turns.
        config: temperature, duplicates and margin.
        mask: none makes the other targets of a query's images negatives, other forms of its own included.
        forms: separate holds each positive against targets of its own form, and hard negatives.
        hardness: multiplies a negative's similarity in `s_m / t + hardness * s_m`, without gradient.

    Raises:
        ValueError: a query is left without a negative.
    """
    parts = [target]
    if forms == "separate":
        present = target.form_ids[~target.is_negative].unique()
        parts = [target.select((target.form_ids == form) | target.is_negative) for form in present]
    found = [_held_against(query, part, config, mask, hardness) for part in parts]
    row_P = torch.cat([each.rows for each in found])
    loss_P = torch.cat([each.losses for each in found])
    per_turn = loss_P.new_zeros(len(query)).index_add(0, row_P, loss_P)
    best_N = torch.stack([each.best for each in found]).amax(0)
    top_N = torch.stack([each.top for each in found]).amax(0)
    counts = {name: torch.stack([each.counts[name] for each in found]).sum() for name in found[0].counts}
    rates = {"in_batch_accuracy": (best_N > top_N).sum()}
    return LossTerms(per_turn / row_P.bincount(minlength=len(query)), counts, rates)


def refuse_lonely(rows: Tensor) -> None:
    """Raise ValueError where there is a query turn without negatives."""
    if len(rows):
        raise ValueError(f"query turn {int(rows[0])} has no negative: a batch needs targets of other images")


def best_of(pairing: Pairing, value_P: Tensor) -> Tensor:
    """Return the greatest value of each query's positives, [N], without gradient."""
    value_P = value_P.detach()
    lowest_N = value_P.new_full((len(pairing.queries),), float("-inf"))
    return lowest_N.scatter_reduce(0, pairing.rows, value_P, "amax")


@dataclass(frozen=True)
class _Held:
    """Positives held against negatives: a loss for each of the P pairs."""

    rows: Tensor
    """int64 [P]"""
    losses: Tensor
    """[P]"""
    best: Tensor
    """[N]: the greatest logit of a positive; -inf where there is none."""
    top: Tensor
    """[N]: the greatest logit of a negative."""
    counts: Mapping[str, Tensor]


def _held_against(
    query: TurnEmbeddings, target: TurnEmbeddings, config: ContrastiveConfig, mask: Mask, hardness: float
) -> _Held:
    pairing = pair_up(query, target, mask=mask, duplicates=config.duplicates)
    row_P, logit_P = pairing.rows, pairing.similarities() / config.temperature
    best_N, boost = best_of(pairing, logit_P), 1 + hardness * config.temperature
    margin = config.false_negative_margin
    negatives = negatives_logsumexp(
        pairing.queries,
        pairing.targets,
        pairing.excluded,
        temperature=config.temperature,
        limit_N=None if margin is None else _limit(best_N, margin / config.temperature),
        boost=boost,
    )
    negatives_P = negatives.logsumexp[row_P]
    counts = dict(pairing.counts)
    if mask == "none":
        negatives_P, num_own = _with_own(negatives_P, row_P, logit_P + (boost - 1) * logit_P.detach())
        counts["negatives"] = counts["negatives"] + num_own
    lonely_P = torch.isneginf(negatives_P) & (negatives.num_beyond[row_P] == 0)
    refuse_lonely(row_P[lonely_P])
    if margin is not None:
        counts["masked_margin"] = negatives.num_beyond.sum()
        counts["negatives"] = counts["negatives"] - counts["masked_margin"]
    return _Held(row_P, F.softplus(negatives_P - logit_P), best_N, negatives.top, counts)


def _limit(best_N: Tensor, margin: float) -> Tensor:
    """Return the logit beyond which a target is likely right; none for a query without a positive here."""
    return torch.where(torch.isneginf(best_N), float("inf"), best_N + margin)


def _with_own(negatives_P: Tensor, row_P: Tensor, logit_P: Tensor) -> tuple[Tensor, int]:
    """Add to each positive's negatives the other positives of its query; return how many that were."""
    own, other = equal_pairs(row_P, row_P)
    own, other = own[own != other], other[own != other]
    some, own = own.unique(return_inverse=True)
    top = logit_P.new_full((len(some),), float("-inf"))
    top = top.scatter_reduce(0, own, logit_P.detach()[other], "amax")
    summed = torch.zeros_like(top).index_add(0, own, (logit_P[other] - top[own]).exp()).log() + top
    return negatives_P.index_copy(0, some, torch.logaddexp(negatives_P[some], summed)), len(other)


Pairs = tuple[Tensor, Tensor]
"""(query rows, target rows), int64 [P] each."""


def _precise(vectors: Tensor) -> Tensor:
    """Return at least float32: half precision ties scores that differ."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def _none_of(query: TurnEmbeddings) -> Pairs:
    empty = query.sample_ids[:0]
    return empty, empty


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
