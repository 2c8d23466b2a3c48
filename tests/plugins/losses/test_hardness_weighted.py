from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers, lists

from muco.plugins.losses.hardness_weighted import HardnessWeighted
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from tests.helpers.turns import random_turns


def loss_of(**settings) -> HardnessWeighted:
    return HardnessWeighted(HardnessWeighted.Config(temperature=0.1, **settings))


def test_the_settings_are_those_of_llave():
    config = HardnessWeighted.Config()
    assert (config.alpha, config.symmetric) == (9, True)
    assert loss_of().symmetric


@pytest.mark.parametrize("alpha", [0.5, 9.0])
@pytest.mark.parametrize("mask", ["same_group", "none"])
def test_matches_the_formula_written_as_loops(alpha, mask):
    """-log( e^(s_p/t) / (e^(s_p/t) + sum of e^(alpha s_m) e^(s_m/t)) )."""
    query, target = random_turns([2, 1, 3], 0, num_negatives=2)
    expected = []
    for i in range(len(query)):
        own, rest = 0.0, 0.0
        for j in range(len(target)):
            s = float(query.vectors[i].detach() @ target.vectors[j].detach())
            same = query.sample_ids[i] == target.sample_ids[j] and not target.is_negative[j]
            if same and query.turn_ids[i] == target.turn_ids[j]:
                own = math.exp(s / 0.1)
            elif mask == "none" or not same:
                rest += math.exp(alpha * s) * math.exp(s / 0.1)
        expected.append(-math.log(own / (own + rest)))
    found = loss_of(alpha=alpha, mask=mask)(query, target).per_turn.tolist()
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mask", ["same_group", "none"])
def test_the_weight_takes_no_gradient(mask):
    """The gradient is that of logits to which a constant was added."""
    query, target = random_turns([1, 2, 1], 3, num_forms=2)
    similarity = query.vectors @ target.vectors.T
    own = (query.sample_ids[:, None] == target.sample_ids) & (query.turn_ids[:, None] == target.turn_ids)
    sibling = query.group_ids[:, None] == target.group_ids
    weighted = similarity / 0.1 + 9 * similarity.detach()
    expected = 0.0
    for i in range(len(query)):
        for p in own[i].nonzero().flatten():
            out = sibling[i] if mask == "same_group" else torch.arange(len(target)) == p
            rest = weighted[i].masked_fill(out, float("-inf")).logsumexp(0)
            expected = expected + torch.nn.functional.softplus(rest - similarity[i, p] / 0.1) / own[i].sum()
    sides = (query.vectors, target.vectors)
    expected_gradients = torch.autograd.grad(expected, sides)
    found = torch.autograd.grad(loss_of(mask=mask)(query, target).per_turn.sum(), sides)
    torch.testing.assert_close(found, expected_gradients, rtol=1e-10, atol=1e-8)


@given(turn_counts=lists(integers(1, 3), min_size=2, max_size=5), seed=integers(0, 2**16))
def test_without_weights_it_is_multiturn_infonce(turn_counts, seed):
    query, target = random_turns(turn_counts, seed)
    plain = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(temperature=0.1))(query, target)
    torch.testing.assert_close(loss_of(alpha=0)(query, target).per_turn, plain.per_turn, rtol=0, atol=0)


def test_likely_false_negatives_can_be_left_out():
    query, target = random_turns([1] * 8, 0, dim=3)
    counts = loss_of(false_negative_margin=0.1)(query, target).counts
    assert int(counts["masked_margin"]) > 0
