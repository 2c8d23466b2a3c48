"""The loss in tiles against the dense formula: time at 8,192 turns, memory at 32,768.

pytest benchmarks/test_tiles.py
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.peak import added_mib
from muco.plugins._shared.tiles import Excluded, negatives_logsumexp

DIM = 256
SETUP = """
import torch
import torch.nn.functional as F
from muco.plugins._shared.tiles import Excluded, negatives_logsumexp
query = F.normalize(torch.randn({size}, 256), dim=1).requires_grad_()
target = F.normalize(torch.randn({size}, 256), dim=1).requires_grad_()
own = torch.arange({size})
small = [F.normalize(torch.randn(64, 256), dim=1).requires_grad_() for _ in range(2)]
negatives_logsumexp(*small, Excluded(own[:64], own[:64], None), temperature=0.05)[0].sum().backward()
"""
TILED = "negatives_logsumexp(query, target, Excluded(own, own, None), temperature=0.05)[0].sum().backward()"


def dense(query, target, own):
    logits = query @ target.T / 0.05
    barred = torch.zeros_like(logits, dtype=torch.bool)
    barred[own, own] = True
    return logits.masked_fill(barred, float("-inf")).logsumexp(1)


def tiled(query, target, own):
    return negatives_logsumexp(query, target, Excluded(own, own, None), temperature=0.05)[0]


@pytest.mark.parametrize("way", [dense, tiled])
def test_forward_and_backward_of_8192_turns(benchmark, way):
    query, target = (F.normalize(torch.randn(8192, DIM), dim=1).requires_grad_() for _ in range(2))
    own = torch.arange(8192)
    benchmark.pedantic(lambda: way(query, target, own).sum().backward(), rounds=5, warmup_rounds=1)


def test_memory_of_32768_turns(benchmark):
    found = benchmark.pedantic(added_mib, (SETUP.format(size=32768), TILED), rounds=1)
    benchmark.extra_info["added_mib"] = found
    print(f"\n32,768 x 32,768 in tiles: {found:.0f} MiB added")
