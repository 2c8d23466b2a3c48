"""Cells as processes of this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from threading import Lock

from muco.ablation.launch.task import Task, run_task
from muco.core.errors import MucoError


class LocalLauncher:
    """Run some cells at once; each gets its share of the processor's threads and of the GPUs."""

    def __init__(self, num_jobs: int = 1, *, num_processes: int = 1) -> None:
        """Find the GPUs of `num_jobs` cells of `num_processes` each; raise MucoError if they are too few."""
        self._devices: Queue[str | None] = Queue()
        for group in device_groups(_visible_devices(), num_jobs, num_processes):
            self._devices.put(group)
        self._pool = ThreadPoolExecutor(num_jobs)
        self._num_threads = max(1, (os.cpu_count() or 1) // num_jobs) if num_jobs > 1 else None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = Lock()
        self._is_stopped = False

    def submit(self, tasks: Sequence[Task]) -> list[Future[int]]:
        """Queue tasks; they start in this order."""
        return [self._pool.submit(self._run, task) for task in tasks]

    def _run(self, task: Task) -> int:
        devices = self._devices.get()
        try:
            return run_task(task, num_threads=self._num_threads, devices=devices, on_start=self._started)
        finally:
            self._devices.put(devices)

    def stop(self) -> None:
        """Ask the runs to stop after a checkpoint, and wait until they have."""
        with self._lock:
            self._is_stopped = True
            for process in self._processes:
                process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._processes.append(process)
            if self._is_stopped:
                process.terminate()


def device_groups(devices: Sequence[str], num_jobs: int, num_processes: int) -> list[str | None]:
    """Return the GPUs of each cell that runs at once, None for none; raise MucoError if they are too few."""
    if not devices:
        return [None] * num_jobs
    if num_jobs * num_processes > len(devices):
        raise MucoError(
            f"--jobs {num_jobs} --processes {num_processes}: {num_jobs * num_processes} GPUs are needed, and "
            f"{len(devices)} are here. Run fewer cells at once."
        )
    firsts = range(0, num_jobs * num_processes, num_processes)
    return [",".join(devices[first : first + num_processes]) for first in firsts]


def _visible_devices() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
