from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import booleans, integers, lists

from muco.plugins.losses.siglip import SigLIP
from tests.helpers.turns import random_turns


@given(
    turn_counts=lists(integers(1, 3), min_size=1, max_size=5),
    seed=integers(0, 2**16),
    masked=booleans(),
    num_forms=integers(1, 2),
)
def test_matches_the_formula_written_as_loops(turn_counts, seed, masked, num_forms):
    """The sum over all pairs of log(1 + exp(-z (a s + b))), z = 1 for a match and -1 for none."""
    query, target = random_turns(turn_counts, seed, num_negatives=2, num_forms=num_forms)
    expected = []
    for i in range(len(query)):
        total = 0.0
        for j in range(len(target)):
            logit = 8 * float(query.vectors[i].detach() @ target.vectors[j].detach()) - 3
            hard = bool(target.is_negative[j])
            same_turn = query.turn_ids[i] == target.turn_ids[j]
            if query.sample_ids[i] == target.sample_ids[j] and same_turn and not hard:
                total += math.log1p(math.exp(-logit))
            elif hard or not masked or query.group_ids[i] != target.group_ids[j]:
                total += math.log1p(math.exp(logit))
        expected.append(total)
    config = SigLIP.Config(scale=8, bias=-3, mask="same_group" if masked else "none", duplicates="keep")
    found = SigLIP(config)(query, target).per_turn.tolist()
    assert found == pytest.approx(expected, abs=1e-5)


def test_scale_and_bias_are_learnt():
    query, target = random_turns([1] * 6, 0)
    target = target.select(target.sample_ids.argsort())
    loss = SigLIP(SigLIP.Config()).double()
    similarity, match = query.vectors @ target.vectors.T, 2 * torch.eye(6, dtype=torch.float64) - 1
    dense = -torch.nn.functional.logsigmoid(match * (similarity * loss.log_scale.exp() + loss.bias))
    expected = torch.autograd.grad(dense.sum(), (loss.log_scale, loss.bias, query.vectors, target.vectors))
    found = torch.autograd.grad(
        loss(query, target).per_turn.sum(), (loss.log_scale, loss.bias, query.vectors, target.vectors)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert {name for name, _ in loss.named_parameters()} == {"log_scale", "bias"}


def test_starts_where_its_settings_say():
    loss = SigLIP(SigLIP.Config(scale=20, bias=-5))
    state = loss.state_dict()
    assert state["log_scale"].exp().item() == pytest.approx(20)
    assert state["bias"].item() == -5


def test_a_query_without_negative_is_an_error():
    with pytest.raises(ValueError, match="query turn 0 has no negative"):
        SigLIP(SigLIP.Config())(*random_turns([2], 0))
