"""muco in processes of its own: forked from a server that has imported what runs need, or by torchrun.

A fork is a real process with its own pid, files and signals. It spares the five seconds of imports.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

MUCO = (sys.executable, "-m", "muco")
TORCHRUN = (*MUCO[:2], "torch.distributed.run", "--standalone", "--nproc-per-node=2", *MUCO[1:])

_PRELOAD = [
    "torch",
    "torchvision",
    "accelerate",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
    "tensorboard.summary.writer.event_file_writer",
    "tests.helpers.gradients",
    "tests.helpers.processes",
    "openai",
    "muco.commands.generate",
    "muco.commands.main",
    "muco.commands.run",
    "muco.evaluation.suite",
    "muco.report.page",
    "muco.training.trainer",
]


@cache
def fork_server() -> Any:
    """Return the context whose server is started by the first process of this test session."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


class Forked:
    """`muco ARGUMENTS` in a forked process, with the methods of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        max_file_bytes: int | None = None,
    ) -> None:
        self._output = Path(mkdtemp(prefix="muco-output-"))
        options = (dict(env or os.environ), self._output, start_new_session, max_file_bytes)
        self._process = fork_server().Process(target=_muco, args=(folder, list(arguments), *options))
        self._process.start()
        self.pid: int = self._process.pid
        while start_new_session and self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        """The exit code; negative where a signal ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return all that was printed."""
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired("muco", timeout or 0)
        out, err = (path.read_text() if path.exists() else "" for path in _streams(self._output))
        return out, err


def _streams(folder: Path) -> list[Path]:
    return [folder / "stdout", folder / "stderr"]


def _muco(
    folder: Path,
    arguments: list[str],
    env: dict[str, str],
    output: Path,
    new_session: bool,
    max_file_bytes: int | None,
) -> None:
    if new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for number, path in enumerate(_streams(output), start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    if max_file_bytes is not None:
        # Larger files cannot be written: the system's own error, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
    from muco.commands.main import main

    main(arguments)


def start(
    folder: Path, *arguments: str, launcher: Sequence[str] | None = None, **options: Any
) -> Forked | subprocess.Popen:
    """Start muco in a folder: forked, or by a launcher. What it prints is kept for `communicate`."""
    if launcher is None:
        return Forked(folder, arguments, **options)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*launcher, *arguments], cwd=folder, **pipes, **options)


def start_two(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> list[Forked]:
    """Start two processes of one group that no launcher watches, as on two nodes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared = {**(env or os.environ), **group}
    return [Forked(folder, arguments, env={**shared, "RANK": str(rank)}) for rank in range(2)]


def ended(process: Forked | subprocess.Popen, *, code: int = 0) -> str:
    """Wait for a process, check how it ended, and return all that it printed, on one line."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    assert "Traceback" not in err, err
    return " ".join((out + err).split())


def wait_until(reached: Callable[[], bool], process: Forked | subprocess.Popen, what: str) -> None:
    """Return once `reached` says so; fail where the process ends first."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if reached():
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} was not reached: {process.communicate()}")
