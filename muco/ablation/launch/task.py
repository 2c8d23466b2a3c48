"""One cell as `muco run` in a process of its own, on the machine of the caller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from muco.io.atomic import write_text
from muco.io.lock import locked

_LAST_LINES = 12


@dataclass(frozen=True)
class Task:
    """A run to start. It holds no recipe, so that it can be sent to another machine."""

    folder: Path
    """The run folder. Beside it are the recipe `<folder>.yaml` and the log `<folder>.log`."""
    working_folder: Path = field(default_factory=Path.cwd)
    """Of the command; relative paths in the recipe are from here."""
    num_processes: int = 1
    """More than one: torchrun starts them, one for each GPU of the cell."""

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self._beside(".yaml")

    @property
    def log(self) -> Path:
        """All that the run prints."""
        return self._beside(".log")

    @property
    def failure(self) -> Path:
        """How the run failed; removed when it starts again."""
        return self._beside(".failed.json")

    @property
    def command(self) -> list[str]:
        """The words after `muco-run`; the command also continues the run."""
        return [f"{self.recipe}", "--to", f"{self.folder}", "--resume"]

    @property
    def program(self) -> list[str]:
        """The words before `run`."""
        if self.num_processes == 1:
            return [sys.executable, "-m", "muco"]
        processes = f"--nproc-per-node={self.num_processes}"
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", processes, "-m", "muco"]

    def _beside(self, ending: str) -> Path:
        return self.folder.with_name(self.folder.name + ending)


@dataclass(frozen=True)
class Failure:
    """How a run failed."""

    exit_code: int | None
    """None if the launcher could not run it."""
    message: str
    """The last lines that it printed, or the launcher's error."""


class Handle(Protocol):
    """A task that was submitted."""

    def done(self) -> bool:
        """Return whether it ended."""
        ...

    def result(self) -> Any:
        """Return the exit code; raise the error that stopped it from running."""
        ...


class Launcher(Protocol):
    """Runs tasks somewhere."""

    def submit(self, tasks: Sequence[Task]) -> Sequence[Handle]:
        """Start tasks, or queue them."""
        ...

    def stop(self) -> None:
        """End the tasks that run, and drop those that wait."""
        ...


def run_task(
    task: Task,
    *,
    num_threads: int | None = None,
    devices: str | None = None,
    on_start: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
) -> int:
    """Run one task to its end and return the exit code, negative if a signal ended it.

    Another process may still run the cell: that of a grid that shares it, or one that a killed command left.
    It is waited for, and the run then finds its result. `num_threads` None leaves the threads to torch;
    `devices` are the GPUs as CUDA_VISIBLE_DEVICES names them, None leaves all. `on_start` is given the
    process.
    """
    folder = task.working_folder / task.folder
    (task.working_folder / task.failure).unlink(missing_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):
        pass
    own = {"OMP_NUM_THREADS": num_threads, "CUDA_VISIBLE_DEVICES": devices}
    log_path = task.working_folder / task.log
    with open(log_path, "ab") as log:
        process = subprocess.Popen(
            [*task.program, "run", *task.command],
            cwd=task.working_folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **{name: f"{value}" for name, value in own.items() if value is not None}},
        )
        try:
            on_start(process)
            code = process.wait()
        except BaseException:  # the launcher stops this task
            process.terminate()
            process.wait()
            raise
    if is_failure(code):
        write_failure(task, Failure(code, _tail(log_path)))
    return code


def write_failure(task: Task, failure: Failure) -> None:
    """Write how a task failed beside its run folder."""
    write_text(task.working_folder / task.failure, json.dumps(asdict(failure), indent=1) + "\n")


def is_failure(code: int) -> bool:
    """Return whether a run ended by an error of its own, not by a signal."""
    return 0 < code < 128


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LAST_LINES:])
