"""Chunks of dialogues."""

from __future__ import annotations

from muco.core.backbone import Cost
from muco.model.batching import held_chunks, plan_chunks

COSTS = [Cost(tokens, 0) for tokens in (3, 9, 5, 8, 4)]


def test_the_longest_dialogues_come_first_and_chunks_keep_to_the_budget():
    assert plan_chunks(COSTS, Cost(17, 17), padded=False) == [[1, 3], [2, 4, 0]]
    assert plan_chunks(COSTS, Cost(17, 17), padded=True) == [[1], [3, 2], [4, 0]]


def test_dialogues_of_a_group_follow_one_another_unless_rows_are_padded():
    groups = ["a", "b", "a", "c", "b"]
    assert plan_chunks(COSTS, Cost(17, 17), padded=False, groups=groups) == [[1, 4], [3, 2, 0]]
    assert plan_chunks(COSTS, Cost(17, 17), padded=True, groups=groups) == [[1], [3, 2], [4, 0]]


def test_an_image_of_several_dialogues_of_a_chunk_counts_once():
    a, b = ({image: 8} for image in "ab")
    costs = [Cost(1, 8, a), Cost(1, 10, a), Cost(1, 8, b), Cost(1, 8, a)]
    assert plan_chunks(costs, Cost(9, 17), padded=False) == [[0, 1], [2, 3]]


def test_the_largest_chunks_are_held_as_far_as_they_fit_and_one_always():
    assert held_chunks([5, 9, 2, 4], 15) == [1, 0]
    assert held_chunks([5, 9, 2, 4], 16) == [1, 0, 2]
    assert held_chunks([5, 9], 0) == [1]
    assert held_chunks([], 7) == []
