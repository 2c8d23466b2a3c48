"""One process against two that share its batch, each with half of the threads.

pytest benchmarks/test_ranks.py
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks.steps import encoder_of, samples, step_of
from muco.distributed.ranks import Ranks

ROUNDS = 5


def _process(rank: int, number: int, threads: int, folder: str) -> None:
    torch.set_num_threads(threads)
    if number > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=number
        )
    encoder = encoder_of(
        {"min_pixels": 56**2, "max_pixels": 56**2},
        {"hidden_dim": 128, "num_layers": 4, "vision_dim": 64, "vision_layers": 2, "vision_heads": 2},
    )
    data = samples(64, turns=7, side_pixels=56, lengths=[12])
    step, _ = step_of(encoder, data, ranks=Ranks(rank, number), chunk_tokens=1024)
    for _ in range(2):
        step()
    began = time.perf_counter()
    for _ in range(ROUNDS):
        step()
    if rank == 0:
        (Path(folder) / "seconds").write_text(str((time.perf_counter() - began) / ROUNDS))
    if number > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("number", [1, 2])
def test_a_step_of_64_images(benchmark, tmp_path, number):
    threads = max(1, torch.get_num_threads() // number)
    args = (number, threads, str(tmp_path))
    benchmark.pedantic(torch.multiprocessing.spawn, (_process, args), {"nprocs": number}, rounds=1)
    seconds = float((tmp_path / "seconds").read_text())
    benchmark.extra_info["seconds_a_step"] = seconds
    print(f"\n{number} processes of {threads} threads: {seconds:.2f} s a step")
