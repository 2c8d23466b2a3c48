"""Run the cells that are not done: stages in order, failures apart from the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence

from muco.ablation.cells import Cell
from muco.ablation.launch.task import Failure, Handle, Launcher, Task, is_failure, write_failure
from muco.ablation.state import summary_of

Report = Callable[[Cell, str], None]
"""Called when a cell is `submitted`, `done`, `failed`, `stopped` or `blocked` by its earlier stage."""
_POLL_SECONDS = 0.1


def run_cells(
    cells: Sequence[Cell],
    launcher: Launcher,
    report: Report,
    *,
    fail_fast: bool = False,
    num_processes: int = 1,
) -> dict[str, str]:
    """Run cells to their end and return what became of each, by fingerprint.

    The cells are not done yet, earlier stages first; each has `num_processes`. `report` is called at each
    change. With `fail_fast` all cells are stopped when one fails.
    """
    outcome: dict[str, str] = {}
    waiting = {cell.fingerprint: cell for cell in cells}
    running: dict[str, tuple[Cell, Handle]] = {}

    def end(cell: Cell, state: str) -> None:
        outcome[cell.fingerprint] = state
        report(cell, state)

    try:
        while waiting or running:
            states = {key: _state_of_parent(cell, outcome, waiting, running) for key, cell in waiting.items()}
            for key in [key for key, state in states.items() if state == "failed"]:
                end(waiting.pop(key), "blocked")
            ready = [waiting[key] for key, state in states.items() if state == "done"]
            tasks = [Task(cell.folder, num_processes=num_processes) for cell in ready]
            handles = launcher.submit(tasks) if ready else []
            for cell, handle in zip(ready, handles, strict=True):
                running[cell.fingerprint] = waiting.pop(cell.fingerprint), handle
                report(cell, "submitted")
            for cell, handle in [pair for pair in running.values() if pair[1].done()]:
                del running[cell.fingerprint]
                end(cell, _result(cell, handle))
            if fail_fast and "failed" in outcome.values():
                break
            time.sleep(_POLL_SECONDS if running else 0)
    finally:
        if running or waiting:
            launcher.stop()
    for cell in [*waiting.values(), *(cell for cell, _ in running.values())]:
        end(cell, "done" if summary_of(cell) else "stopped")
    return outcome


def _state_of_parent(cell: Cell, outcome: dict[str, str], *unfinished: Container[str]) -> str:
    """Return what became of the earlier stage: `done`, `failed` or `pending`."""
    if cell.parent is None or outcome.get(cell.parent.fingerprint) == "done":
        return "done"
    if any(cell.parent.fingerprint in each for each in unfinished):
        return "pending"
    return "done" if summary_of(cell.parent) else "failed"


def _result(cell: Cell, handle: Handle) -> str:
    try:
        code = handle.result()
    except Exception as error:  # of the launcher: out of memory, out of time, a node that is gone
        write_failure(Task(cell.folder), Failure(None, f"{type(error).__name__}: {error}"))
        return "failed"
    return "done" if code == 0 else "failed" if is_failure(code) else "stopped"
