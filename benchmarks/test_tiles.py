"""The loss in tiles against the dense formula: time at 8,192 turns, memory at 32,768.

pytest benchmarks/test_tiles.py
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.peak import resident_mib
from muco.core import TurnEmbeddings, TurnIds
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE

DIM = 256


def turns(number: int) -> TurnEmbeddings:
    """Return turns of as many samples, seven to an image."""
    own = torch.arange(number)
    ids = TurnIds(
        sample_ids=own // 7,
        turn_ids=own % 7,
        form_ids=torch.zeros_like(own),
        group_ids=own // 7,
        content_ids=own,
        task_ids=own % 7,
        is_negative=torch.zeros(number, dtype=torch.bool),
    )
    return TurnEmbeddings.join(F.normalize(torch.randn(number, DIM), dim=1).requires_grad_(), ids)


def tiled(query: TurnEmbeddings, target: TurnEmbeddings) -> torch.Tensor:
    """Return the shipped loss."""
    return MultiTurnInfoNCE(MultiTurnInfoNCE.Config()).per_turn(query, target).per_turn


def dense(query: TurnEmbeddings, target: TurnEmbeddings) -> torch.Tensor:
    """Return the same from the full matrix of logits."""
    logits_NM = query.vectors @ target.vectors.T / 0.02
    group_NM = query.group_ids[:, None] == target.group_ids
    negative_N = logits_NM.masked_fill(group_NM, float("-inf")).logsumexp(1)
    return F.softplus(negative_N - logits_NM.diagonal())


def test_both_are_one_loss():
    query, target = turns(700), turns(700)
    torch.testing.assert_close(tiled(query, target), dense(query, target), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", [dense, tiled])
def test_forward_and_backward_of_8192_turns(benchmark, loss):
    query, target = turns(8192), turns(8192)
    benchmark.pedantic(lambda: loss(query, target).sum().backward(), rounds=5, warmup_rounds=1)


BEFORE = """
from benchmarks.test_tiles import *
query, target = turns({size}), turns({size})
tiled(turns(70), turns(70)).sum().backward()
"""


def test_memory_of_32768_turns(benchmark):
    start, peak = resident_mib(BEFORE.format(size=32768), "tiled(query, target).sum().backward()")
    benchmark.pedantic(lambda: None)
    benchmark.extra_info["added_mib"] = peak - start
    print(f"\n32,768 x 32,768 x {DIM} in tiles, forward and backward: {peak - start:.0f} MiB added")
