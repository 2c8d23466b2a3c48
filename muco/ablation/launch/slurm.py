"""Cells as jobs of SLURM, by submitit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muco.ablation.launch.task import Task, run_task
from muco.core.errors import MucoError


class SlurmLauncher:
    """Submit cells that are ready at the same time as one array job.

    A job that is preempted or reaches its time limit is queued again; the run goes on from its checkpoint.
    """

    def __init__(self, folder: Path, resources: Mapping[str, Any], *, cluster: str | None = "slurm") -> None:
        """Prepare the jobs.

        Args:
            folder: of the files of submitit.
            resources: of a job, as submitit's AutoExecutor takes them: `slurm_partition`, `gpus_per_node`,
                `cpus_per_task`, `timeout_min`, `slurm_array_parallelism` and so on.
            cluster: `slurm`; `local` runs the jobs as processes of this machine.

        Raises:
            MucoError: submitit is not installed, there is no SLURM, or a resource is unknown.
        """
        try:
            import submitit  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MucoError("--launcher slurm needs submitit: pip install 'muco[slurm]'") from None
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster)
            self._executor.update_parameters(name="muco", **resources)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise MucoError(f"--launcher slurm: {error}") from None
        self._jobs: list[Any] = []

    def submit(self, tasks: Sequence[Task]) -> list[Any]:
        """Submit tasks as one array."""
        with self._executor.batch():
            jobs = [self._executor.submit(Requeued(task)) for task in tasks]
        self._jobs += jobs
        return jobs

    def stop(self) -> None:
        """Cancel the jobs that wait or run."""
        for job in self._jobs:
            if not job.done():
                job.cancel()


class Requeued:
    """A task that submitit submits again when its job is preempted or out of time."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self) -> int:
        """Run the task."""
        return run_task(self.task)

    def checkpoint(self) -> Any:
        """Return what is submitted again; the run has its own checkpoints."""
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        return DelayedSubmission(Requeued(self.task))
