"""Cells as processes of this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from muco.ablation.launch.task import Task, run_task


class LocalLauncher:
    """Run some cells at once; each gets its share of the processor's threads."""

    def __init__(self, num_jobs: int = 1) -> None:
        self._pool = ThreadPoolExecutor(num_jobs)
        self._num_threads = max(1, (os.cpu_count() or 1) // num_jobs) if num_jobs > 1 else None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = Lock()
        self._is_stopped = False

    def submit(self, tasks: Sequence[Task]) -> list[Future[int]]:
        """Queue tasks; they start in this order."""
        return [
            self._pool.submit(run_task, task, num_threads=self._num_threads, on_start=self._started)
            for task in tasks
        ]

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
