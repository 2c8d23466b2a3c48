"""Exact search against faiss's flat index: the top ten, and the rank of the relevant candidate.

    OMP_NUM_THREADS=2 pytest benchmarks/test_search.py -s

1,000 queries, 1,000,000 candidates of 256 dimensions in a memory-mapped file. Each query is near one
candidate, which is relevant. Both run in turn, three times each, and the shortest times count:
on a busy machine single rounds differ two-fold.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from muco.core import Content, Task
from muco.evaluation.embedding_store import MappedVectors
from muco.evaluation.search.search import rank_all, top_k

NUM_QUERIES, NUM_CANDIDATES, DIM, TOP_K = 1_000, int(os.environ.get("CANDIDATES", 1_000_000)), 256, 10
ROUNDS = 3
MIN_RATIO = {"float32": 0.9, "float16": 0.7}


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    """Both stores of the same random vectors."""
    folder = tmp_path_factory.mktemp("store")
    generator = torch.Generator().manual_seed(0)
    with open(folder / "float32", "wb") as whole, open(folder / "float16", "wb") as half:
        for _ in range(NUM_CANDIDATES // 50_000):
            rows = F.normalize(torch.randn(50_000, DIM, generator=generator), dim=1).numpy()
            rows.tofile(whole)
            rows.astype(np.float16).tofile(half)
    return folder


def own_memory() -> int:
    """Return the process's memory in bytes, without memory-mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@pytest.mark.parametrize("dtype", MIN_RATIO)
def test_search_keeps_up_with_faiss(pool, dtype):
    rows = np.memmap(pool / dtype, dtype=dtype, mode="c").reshape(-1, DIM)
    candidates = MappedVectors(rows)
    generator = torch.Generator().manual_seed(1)
    relevant = torch.randperm(len(rows), generator=generator)[:NUM_QUERIES]
    noise = torch.randn(NUM_QUERIES, DIM, generator=generator) / DIM**0.5
    query = F.normalize(candidates.take(relevant) + noise, dim=1)
    task = Task("t", "retrieval", [Content()] * NUM_QUERIES, range(len(rows)), None,  # type: ignore[arg-type]
                [[index] for index in relevant.tolist()])  # fmt: skip

    before = own_memory()
    (scores, _), rankings = top_k(query, candidates, TOP_K), rank_all(task, query, candidates)
    added = own_memory() - before
    index = faiss.IndexFlatIP(DIM)
    index.add(np.fromfile(pool / "float32", dtype=np.float32).reshape(-1, DIM))
    faiss_scores, faiss_ids = index.search(query.numpy(), TOP_K)  # sums in float32; ours are exact
    if dtype == "float32":
        np.testing.assert_allclose(scores.numpy(), faiss_scores, atol=2e-6)
        np.testing.assert_array_equal(
            [each.rank == 1 for each in rankings], faiss_ids[:, 0] == relevant.numpy()
        )

    times: dict[str, list[float]] = {"faiss": [], "top_k": [], "ranks": []}
    for _ in range(ROUNDS):
        times["faiss"].append(timed(lambda: index.search(query.numpy(), TOP_K)))
        times["top_k"].append(timed(lambda: top_k(query, candidates, TOP_K)))
        times["ranks"].append(timed(lambda: rank_all(task, query, candidates)))
    fastest = {name: min(each) for name, each in times.items()}
    print(f"\n{dtype}: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in fastest.items()))
    print(f"memory besides the store {added / 2**30:.2f} GiB; all rounds {times}")
    assert added < 1.5 * 2**30
    assert fastest["faiss"] / fastest["top_k"] >= MIN_RATIO[dtype]
    assert fastest["faiss"] / fastest["ranks"] >= MIN_RATIO[dtype]
