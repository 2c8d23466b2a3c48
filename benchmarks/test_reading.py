"""The time to the first batch after resuming, at an early and at a late step.

pytest benchmarks/test_reading.py
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.reader import BATCH, Planned, write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "shards"
    write_photos(folder, num_samples=6144)
    return folder


def test_the_first_batch_after_resuming_costs_the_same_at_any_step(photos, benchmark):
    """Promise 4: resuming reads nothing of the steps before."""
    planned = Planned(photos)

    def first_batch(step: int) -> float:
        start = time.perf_counter()
        epoch, position = divmod(step, len(planned))
        plan = planned.sampler.plan(
            {"a": len(planned.reader)}, batch_size=BATCH, seed=0, epoch=epoch, position=position
        )
        for ref in plan.samples:
            planned.reader[ref.index]
        return time.perf_counter() - start

    def medians() -> dict[int, float]:
        return {step: float(np.median([first_batch(step) for _ in range(9)])) for step in (10, 1_000_000)}

    seconds = benchmark.pedantic(medians, rounds=3, warmup_rounds=1)
    print(f"\nmilliseconds to the first batch: {1000 * seconds[10]:.2f} at step 10, ", end="")
    print(f"{1000 * seconds[1_000_000]:.2f} at step 1,000,000")
    assert seconds[1_000_000] < 2 * seconds[10]
