"""Cells as tasks of a Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from importlib import import_module
from typing import Any

from muco.ablation.launch.task import Task, run_task
from muco.core.errors import MucoError


class RayLauncher:
    """Run a task for each cell. All nodes share the working folder; `RAY_ADDRESS` names a cluster."""

    def __init__(self, resources: Mapping[str, Any]) -> None:
        """Connect to the cluster, or start one on this machine.

        Args:
            resources: of a cell, as `ray.remote` takes them: `num_cpus`, `num_gpus`, `memory`, `resources`.
                By default one processor, and one GPU where the cluster has any.

        Raises:
            MucoError: Ray is not installed, the cluster is not there, or a resource is unknown.
        """
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise MucoError("--launcher ray needs Ray: pip install 'muco[ray]'") from None
        try:
            if not ray.is_initialized():
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
            gpus = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {}
            self._options: dict[str, Any] = {"num_cpus": 1, **gpus, **resources}
            self._run: Any = ray.remote(max_retries=0, **self._options)(_run)
        except (ConnectionError, ValueError, TypeError) as error:
            raise MucoError(f"--launcher ray: {error}") from None
        self._ray = ray
        self._refs: list[Any] = []

    def submit(self, tasks: Sequence[Task]) -> list[Future[int]]:
        """Queue tasks; Ray places them."""
        refs = [self._run.remote(task, max(1, int(self._options["num_cpus"]))) for task in tasks]
        self._refs += refs
        return [ref.future() for ref in refs]

    def stop(self) -> None:
        """Cancel the tasks that wait or run."""
        for ref in self._refs:
            self._ray.cancel(ref)


def _run(task: Task, num_threads: int) -> int:
    return run_task(task, num_threads=num_threads)
