from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis.strategies import integers, lists

from muco.core import TurnKey
from muco.core.turns import TurnEmbeddings, TurnIds
from muco.plugins.losses.infonce import InfoNCE
from tests.helpers.turns import random_turns


@given(num_samples=integers(2, 9), seed=integers(0, 2**16))
def test_is_the_cross_entropy_of_the_own_target(num_samples, seed):
    query, target = random_turns([1] * num_samples, seed)
    target = target.select(target.sample_ids.argsort())
    logits = query.vectors @ target.vectors.T / 0.07
    loss = InfoNCE(InfoNCE.Config(temperature=0.07, duplicates="keep"))
    expected = F.cross_entropy(logits, torch.arange(num_samples), reduction="none")
    torch.testing.assert_close(loss(query, target).per_turn, expected, rtol=1e-10, atol=1e-10)


@given(turn_counts=lists(integers(1, 4), min_size=2, max_size=5), seed=integers(0, 2**16))
def test_order_of_targets_is_irrelevant(turn_counts, seed):
    query, target = random_turns(turn_counts, seed, num_contents=5)
    loss = InfoNCE(InfoNCE.Config(duplicates="keep"))
    backwards = target.select(torch.arange(len(target)).flip(0))
    torch.testing.assert_close(loss(query, target).per_turn, loss(query, backwards).per_turn)


def test_a_query_without_positive_is_an_error():
    query, target = random_turns([1, 1], 0)
    with pytest.raises(ValueError, match="query turn 0 has no positive"):
        InfoNCE(InfoNCE.Config())(query, target.select(target.sample_ids == 1))


def test_a_query_without_negative_is_an_error():
    query, target = random_turns([1], 0)
    with pytest.raises(
        ValueError, match=r"query turn 0 has no negative.* merged with its own \(`duplicates`\) or masked"
    ):
        InfoNCE(InfoNCE.Config())(query, target)


def test_merged_targets_score_as_one():
    keys = [
        TurnKey(sample_id=i, turn_id=0, group_id=i, content_id=c, task_id=0) for i, c in enumerate([7, 7, 8])
    ]
    vectors = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=-1)
    target_vectors = vectors.roll(1, 0)
    target_vectors = torch.stack([target_vectors[0], target_vectors[0], target_vectors[2]])
    query = TurnEmbeddings.join(vectors, TurnIds.of(keys))
    target = TurnEmbeddings.join(target_vectors, TurnIds.of(keys))
    merged = InfoNCE(InfoNCE.Config(temperature=0.1, duplicates="merge"))(query, target)
    logits = vectors @ target_vectors[[0, 2]].T / 0.1
    expected = F.cross_entropy(logits, torch.tensor([0, 0, 1]), reduction="none")
    torch.testing.assert_close(merged.per_turn, expected)
    masked = InfoNCE(InfoNCE.Config(temperature=0.1, duplicates="mask"))(query, target)
    torch.testing.assert_close(masked.per_turn[:2], expected[:2])
    assert int(masked.counts["masked_duplicates"]) == 2
