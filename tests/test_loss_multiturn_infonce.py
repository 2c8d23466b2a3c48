from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers, lists, sampled_from

from muco.plugins.losses.infonce import InfoNCE
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from muco.testing import check_loss
from tests.turns import random_turns

turn_counts_lists = lists(integers(1, 4), min_size=2, max_size=6)


def slow_multiturn_infonce(query, target, temperature, duplicates):
    """The formula of paper.md written as loops; None where a query has no negative."""
    losses = []
    for i in range(len(query)):
        positives, negatives, seen = [], [], set()
        for j in sorted(range(len(target)), key=lambda j: j):
            score = float(query.vectors[i].detach() @ target.vectors[j].detach()) / temperature
            hard = bool(target.is_negative[j])
            own = (
                query.sample_ids[i] == target.sample_ids[j]
                and query.turn_ids[i] == target.turn_ids[j]
                and not hard
            )
            equal = bool(query.content_ids[i] == target.content_ids[j])
            sibling = bool(query.group_ids[i] == target.group_ids[j]) and not hard
            content = int(target.content_ids[j])
            if duplicates == "merge":
                if content in seen:
                    continue
                seen.add(content)
                rows = [k for k in range(len(target)) if int(target.content_ids[k]) == content]
                own = equal or any(
                    query.sample_ids[i] == target.sample_ids[k]
                    and query.turn_ids[i] == target.turn_ids[k]
                    and not target.is_negative[k]
                    for k in rows
                )
                sibling = any(
                    query.group_ids[i] == target.group_ids[k] and not target.is_negative[k] for k in rows
                )
            if own:
                positives.append(score)
            elif not sibling and not (equal and duplicates == "mask"):
                negatives.append(score)
        if not negatives:
            return None
        rest = math.log(sum(math.exp(score) for score in negatives))
        losses.append(sum(math.log1p(math.exp(rest - score)) for score in positives) / len(positives))
    return torch.tensor(losses, dtype=torch.float64)


def test_keeps_the_contract(registry):
    check_loss(registry, "multiturn_infonce", {})


@given(
    turn_counts=turn_counts_lists,
    seed=integers(0, 2**16),
    duplicates=sampled_from(["keep", "mask", "merge"]),
    num_contents=sampled_from([3, 1000]),
    num_negatives=integers(0, 4),
)
def test_matches_the_formula_written_as_loops(turn_counts, seed, duplicates, num_contents, num_negatives):
    query, target = random_turns(turn_counts, seed, num_contents=num_contents, num_negatives=num_negatives)
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.1, duplicates=duplicates))
    expected = slow_multiturn_infonce(query, target, 0.1, duplicates)
    if expected is None:
        with pytest.raises(ValueError, match="no negative"):
            loss(query, target)
    else:
        torch.testing.assert_close(loss(query, target).per_turn, expected, rtol=1e-9, atol=1e-9)


@given(num_samples=integers(2, 7), seed=integers(0, 2**16))
def test_one_turn_a_sample_equals_infonce(num_samples, seed):
    query, target = random_turns([1] * num_samples, seed)
    multi = MultiTurnInfoNCE(MultiTurnInfoNCE.Config())(query, target)
    single = InfoNCE(InfoNCE.Config())(query, target)
    torch.testing.assert_close(multi.per_turn, single.per_turn, rtol=0, atol=0)


@given(seed=integers(0, 2**16))
def test_siblings_get_no_gradient(seed):
    query, target = random_turns([2, 2], seed)
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=1.0))
    own = (query.sample_ids == 0) & (query.turn_ids == 0)
    (gradient,) = torch.autograd.grad(loss(query, target).per_turn[own].sum(), target.vectors)
    sibling = (target.sample_ids == 0) & (target.turn_ids == 1)
    assert not gradient[sibling].any()
    assert gradient[~sibling].any(1).all()


def test_counts_say_what_was_masked():
    query, target = random_turns([2, 3], 0)
    counts = MultiTurnInfoNCE(MultiTurnInfoNCE.Config())(query, target).counts
    assert int(counts["masked_siblings"]) == 2 * 1 + 3 * 2
    assert int(counts["negatives"]) == 2 * 3 + 3 * 2


def test_large_logits_do_not_overflow():
    query, target = random_turns([2, 2], 0)
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=1e-4))(query, target).per_turn
    assert torch.isfinite(loss).all()
