"""Exact search with muco and with faiss's flat index: the ten best, and the ranks of the right answers.

python benchmarks/peers/search.py                      # float32, one thread; needs faiss-cpu
python benchmarks/peers/search.py --dtype float16 --threads 2

1,000 queries, 1,000,000 candidates of 256 dimensions. Each query is near one candidate, which is its right
answer. Every round starts a fresh process for each engine, by turns; a round searches once to warm up and
once to measure. faiss reads float32, muco reads the dtype that is given. Prints ratios of faiss to muco: the
median of the rounds, in CPU time and in wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

NUM_QUERIES, DIM, TOP_K, ROWS_AT_ONCE = 1_000, 256, 10, 50_000
ENGINES = ("faiss", "top_k", "ranks")


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_vectors(folder: Path, num_candidates: int) -> None:
    """Write the candidates as float32 and as float16, the queries, and the row of each right answer."""
    rng = np.random.default_rng(0)
    with open(folder / "float32", "wb") as whole, open(folder / "float16", "wb") as half:
        for first in range(0, num_candidates, ROWS_AT_ONCE):
            number = min(ROWS_AT_ONCE, num_candidates - first)
            rows = unit(rng.standard_normal((number, DIM), dtype=np.float32))
            rows.tofile(whole)
            rows.astype(np.float16).tofile(half)
    candidates = np.memmap(folder / "float32", dtype=np.float32, mode="r").reshape(-1, DIM)
    right = rng.permutation(num_candidates)[:NUM_QUERIES]
    noise = rng.standard_normal((NUM_QUERIES, DIM), dtype=np.float32) / DIM**0.5
    np.save(folder / "right.npy", right)
    np.save(folder / "queries.npy", unit(candidates[right] + noise))


def faiss_run(folder: Path, threads: int) -> Callable[[], Any]:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(DIM)
    index.add(np.fromfile(folder / "float32", dtype=np.float32).reshape(-1, DIM))
    queries = np.load(folder / "queries.npy")
    return lambda: index.search(queries, TOP_K)[1][:, 0].tolist()


def muco_run(engine: str, folder: Path, dtype: str, threads: int) -> Callable[[], Any]:
    import torch

    from muco.core import Content, Task
    from muco.evaluation.search.search import rank_all, top_k

    torch.set_num_threads(threads)
    rows = np.memmap(folder / dtype, dtype=dtype, mode="c").reshape(-1, DIM)
    pool, query = torch.from_numpy(rows), torch.from_numpy(np.load(folder / "queries.npy"))
    if engine == "top_k":
        return lambda: top_k(query, pool, TOP_K)[1][:, 0].tolist()
    right = [[int(row)] for row in np.load(folder / "right.npy")]
    contents: Any = [Content()] * NUM_QUERIES
    candidates: Any = range(len(pool))
    task = Task("t", "retrieval", contents, candidates, None, right)
    return lambda: [each.rank == 1 for each in rank_all(task, query, pool)]


def measure(engine: str, folder: Path, dtype: str, threads: int) -> None:
    """Print the times of one search as JSON, and what it returned."""
    is_faiss = engine == "faiss"
    search = faiss_run(folder, threads) if is_faiss else muco_run(engine, folder, dtype, threads)
    search()
    wall, cpu = time.perf_counter(), time.process_time()
    result = search()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps({"cpu": cpu, "wall": wall, "result": result}))


def started(engine: str, folder: Path, dtype: str, threads: int) -> dict[str, Any]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--engine", engine, "--folder", str(folder), "--dtype", dtype]
    number = str(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": number, "OPENBLAS_NUM_THREADS": number}
    output = subprocess.run(
        [*command, "--threads", number], env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return json.loads(output.splitlines()[-1])


def check_results(rounds: dict[str, Any], folder: Path, dtype: str) -> None:
    """Check that both engines answer alike; a float16 store may order near neighbors differently."""
    best, right = np.array(rounds["faiss"]["result"]), np.load(folder / "right.npy")
    share = 1.0 if dtype == "float32" else 0.99
    assert np.mean(best == np.array(rounds["top_k"]["result"])) >= share
    assert np.mean((best == right) == np.array(rounds["ranks"]["result"])) >= share


def compare(num_candidates: int, dtype: str, threads: int, num_rounds: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_vectors(folder, num_candidates)
        rounds = [
            {engine: started(engine, folder, dtype, threads) for engine in ENGINES} for _ in range(num_rounds)
        ]
        check_results(rounds[0], folder, dtype)
    print(f"{num_candidates:,} candidates, {dtype}, {threads} threads, {num_rounds} rounds; faiss / muco")
    for engine in ENGINES[1:]:
        ratios = {
            clock: statistics.median(each["faiss"][clock] / each[engine][clock] for each in rounds)
            for clock in ("cpu", "wall")
        }
        print(f"{engine:<6} CPU {ratios['cpu']:.3f}  wall {ratios['wall']:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=1_000_000)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        measure(options.engine, options.folder, options.dtype, options.threads)
    else:
        compare(options.candidates, options.dtype, options.threads, options.rounds)


if __name__ == "__main__":
    main()
