"""Shared by the contrastive losses: the choice of positives and negatives, and the softmax formula.

N query turns, M target turns, P pairs of a query and its positive, C distinct target contents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from muco.core.component import ComponentConfig, Feature
from muco.core.loss import Candidates, Loss, LossTerms, positive_pairs
from muco.core.pairs import equal_pairs, num_equal_pairs
from muco.core.turns import TurnEmbeddings
from muco.plugins.losses.tiles import Excluded, negatives_logsumexp

Mask = Literal["same_group", "none"]
Forms = Literal["joint", "separate"]


class PairingConfig(ComponentConfig):
    """Settings for the choice of negatives."""

    duplicates: Literal["keep", "mask", "merge"] = "mask"
    """Targets whose content equals that of the query's own target: keep them as negatives, mask them, or
    merge all targets of one content into one. merge needs targets that are encoded independently."""


class ContrastiveConfig(PairingConfig):
    """Settings of a softmax loss."""

    temperature: PositiveFloat = 0.02
    """Divides the cosine similarities; no unit."""
    symmetric: bool = False
    """Also score the targets against all queries, and take the mean of both directions."""
    false_negative_margin: NonNegativeFloat | None = None
    """A target that is more similar to the query than its best positive, by more than this, is not a
    negative: it is probably right. None keeps all; 0.1 is a common value."""

    @model_validator(mode="after")
    def _queries_are_not_merged(self) -> ContrastiveConfig:
        if self.symmetric and self.duplicates == "merge":
            raise ValueError(
                "`symmetric` needs `duplicates: mask` or `keep`: the queries of a merged target differ, so "
                "they cannot be merged"
            )
        return self


class PairingLoss(Loss):
    """A loss with the settings of `PairingConfig`, or of `ContrastiveConfig`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.symmetric = isinstance(config, ContrastiveConfig) and config.symmetric

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        """Return what the packer must offer: equal contents are merged only if their embeddings are equal."""
        return frozenset({"independent_targets"} if config.duplicates == "merge" else ())

    def candidates(self, query: TurnEmbeddings, target: TurnEmbeddings) -> Candidates:
        mask: Mask = getattr(self.config, "mask", "none")
        pairing = pair_up(query, target, mask=mask, duplicates=self.config.duplicates)
        scores = pairing.queries @ pairing.targets.T
        is_positive = torch.zeros_like(scores, dtype=torch.bool)
        is_positive[pairing.rows, pairing.columns] = True
        num_queries, num_targets = scores.shape
        excluded = pairing.excluded.tile(slice(0, num_queries), slice(0, num_targets))
        return Candidates(scores, is_positive, ~excluded)


@dataclass(frozen=True)
class Pairing:
    """The positives of each query, and the targets that are neither positive nor negative."""

    queries: Tensor
    """[N, D], float32 or finer."""
    targets: Tensor
    """[M, D], or [C, D] if duplicates are merged."""
    rows: Tensor
    """int64 [P]: the queries of the positives, ascending."""
    columns: Tensor
    """int64 [P]: the positives."""
    excluded: Excluded
    """All pairs that are not negatives, the positives among them."""
    counts: Mapping[str, Tensor]
    """negatives, masked_siblings, masked_duplicates."""


def pair_up(query: TurnEmbeddings, target: TurnEmbeddings, *, mask: Mask, duplicates: str) -> Pairing:
    """Return the positives P and what is masked; every other target is a negative.

    Args:
        query: N turns.
        target: M turns.
        mask: whether the other targets of a query's images are negatives; hard negatives always are.
        duplicates: see `PairingConfig`.
    """
    positives, siblings = positive_pairs(query, target), (query.sample_ids[:0], query.sample_ids[:0])
    if mask == "same_group":
        rows, columns = equal_pairs(query.group_ids, target.group_ids)
        is_sibling = ~target.is_negative[columns]
        siblings = rows[is_sibling], columns[is_sibling]
    if duplicates == "merge":
        target, column_M = _merge(target)
        same_content = equal_pairs(query.content_ids, target.content_ids)
        positives = _join((positives[0], column_M[positives[1]]), same_content)
        siblings = siblings[0], column_M[siblings[1]]
    width = len(target)
    positive = _codes(positives, width)
    excluded = _codes(_join(positives, siblings), width)
    rows, columns = excluded // width, excluded % width

    masks_equal = duplicates == "mask"
    contents = (query.content_ids, target.content_ids)
    equal = torch.zeros((), dtype=torch.int64, device=rows.device)
    if masks_equal:
        equal = num_equal_pairs(*contents) - (contents[0][rows] == contents[1][columns]).sum()
    counts = {
        "negatives": len(query) * width - len(excluded) - equal,
        "masked_siblings": equal.new_tensor(len(excluded) - len(positive)),
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
    """Return the softmax loss of each query turn, with counts of what was masked.

    With positives P and negatives M of a query, similarities s and temperature t,
    `loss = mean over p in P of -logsigmoid(s_p / t - logsumexp(s_m / t for m in M))`: the formula of both
    stages of the paper. For one positive it is the cross-entropy.

    Args:
        query: N turns.
        target: M turns.
        config: temperature, duplicates and margin.
        mask: none makes the other targets of a query's images negatives, the other forms of its own included.
        forms: separate compares each positive with targets of its own form, and with hard negatives.
        hardness: multiplies a negative's similarity in `s_m / t + hardness * s_m`, without gradient.

    Raises:
        ValueError: a query has no negative.
    """
    parts = [target]
    if forms == "separate":
        present = target.form_ids[~target.is_negative].unique()
        parts = [target.select((target.form_ids == form) | target.is_negative) for form in present]
    terms = [_terms(query, part, config, mask, hardness) for part in parts]
    row_P = torch.cat([each.rows for each in terms])
    loss_P = torch.cat([each.losses for each in terms])
    per_turn = loss_P.new_zeros(len(query)).index_add(0, row_P, loss_P)
    best_N = torch.stack([each.best for each in terms]).amax(0)
    top_N = torch.stack([each.top for each in terms]).amax(0)
    counts = {name: torch.stack([each.counts[name] for each in terms]).sum() for name in terms[0].counts}
    rates = {"in_batch_accuracy": (best_N > top_N).sum()}
    return LossTerms(per_turn / row_P.bincount(minlength=len(query)), counts, rates)


def require_negatives(rows: Tensor) -> None:
    """Raise ValueError if there are query turns without a negative; `rows` are theirs, int64."""
    if len(rows):
        raise ValueError(
            f"query turn {int(rows[0])} has no negative: a batch needs targets of other images. Targets that "
            "are merged with its own (`duplicates`) or masked (`mask`, `false_negative_margin`) do not count"
        )


def max_per_query(pairing: Pairing, value_P: Tensor) -> Tensor:
    """Return the maximum over each query's positives, [N], without gradient; -inf without one."""
    value_P = value_P.detach()
    lowest_N = value_P.new_full((len(pairing.queries),), float("-inf"))
    return lowest_N.scatter_reduce(0, pairing.rows, value_P, "amax")


class _Terms(NamedTuple):
    """A loss for each of the P pairs."""

    rows: Tensor
    """int64 [P]"""
    losses: Tensor
    """[P]"""
    best: Tensor
    """[N]: the greatest logit of a positive; -inf without one."""
    top: Tensor
    """[N]: the greatest logit of a negative."""
    counts: Mapping[str, Tensor]


def _terms(
    query: TurnEmbeddings, target: TurnEmbeddings, config: ContrastiveConfig, mask: Mask, hardness: float
) -> _Terms:
    pairing = pair_up(query, target, mask=mask, duplicates=config.duplicates)
    row_P = pairing.rows
    logit_P = (pairing.queries[row_P] * pairing.targets[pairing.columns]).sum(1) / config.temperature
    best_N, boost = max_per_query(pairing, logit_P), 1 + hardness * config.temperature
    margin, limit_N = config.false_negative_margin, None
    if margin is not None:
        # A query without a positive here has no limit.
        limit_N = torch.where(torch.isneginf(best_N), float("inf"), best_N + margin / config.temperature)
    negatives = negatives_logsumexp(
        pairing.queries,
        pairing.targets,
        pairing.excluded,
        temperature=config.temperature,
        limit_N=limit_N,
        boost=boost,
    )
    negatives_P = negatives.logsumexp[row_P]
    counts = dict(pairing.counts)
    if mask == "none":
        negatives_P, num_own = _add_own(negatives_P, row_P, logit_P + (boost - 1) * logit_P.detach())
        counts["negatives"] = counts["negatives"] + num_own
    # A query whose negatives are all beyond the margin has a loss of zero.
    require_negatives(row_P[torch.isneginf(negatives_P) & (negatives.num_beyond[row_P] == 0)])
    if margin is not None:
        counts["masked_margin"] = negatives.num_beyond.sum()
        counts["negatives"] = counts["negatives"] - counts["masked_margin"]
    # softplus is linear beyond 20.
    return _Terms(row_P, -F.logsigmoid(logit_P - negatives_P), best_N, negatives.top, counts)


def _add_own(negatives_P: Tensor, row_P: Tensor, logit_P: Tensor) -> tuple[Tensor, int]:
    """Add the other positives of its query to each positive's negatives; return how many were added."""
    own, other = equal_pairs(row_P, row_P)
    own, other = own[own != other], other[own != other]
    changed, own = own.unique(return_inverse=True)
    top = logit_P.new_full((len(changed),), float("-inf"))
    top = top.scatter_reduce(0, own, logit_P.detach()[other], "amax")
    added = torch.zeros_like(top).index_add(0, own, (logit_P[other] - top[own]).exp()).log() + top
    return negatives_P.index_copy(0, changed, torch.logaddexp(negatives_P[changed], added)), len(other)


Pairs = tuple[Tensor, Tensor]
"""(query rows, target rows), int64 [P] each."""


def _precise(vectors: Tensor) -> Tensor:
    """Return at least float32: in half precision different scores become equal."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def _codes(pairs: Pairs, width: int) -> Tensor:
    """Return each distinct pair as one number, ascending: by row, then by column."""
    return (pairs[0] * width + pairs[1]).unique()


def _join(first: Pairs, second: Pairs) -> Pairs:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


def _merge(target: TurnEmbeddings) -> tuple[TurnEmbeddings, Tensor]:
    """Return the first target of each content, and the row that each target was merged into."""
    contents_C, column_M = target.content_ids.unique(return_inverse=True)
    rows_M = torch.arange(len(target), device=column_M.device)
    first_C = rows_M.new_full((len(contents_C),), len(target))
    first_C.scatter_reduce_(0, column_M, rows_M, "amin")
    return target.select(first_C), column_M
