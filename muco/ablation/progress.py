"""What the terminal shows while cells run: a live table, or a line for each change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from muco.ablation.cells import Cell, Plan
from muco.ablation.launch.task import Task
from muco.ablation.state import failure_of, last_step, status_of, summary_of

_MAX_ROWS = 40


class GridProgress:
    """Shows the state of the cells of a grid; used as a context."""

    def __init__(self, plan: Plan, cells: Sequence[Cell], console: Console) -> None:
        self._plan = plan
        self._console = console
        self._labels = labels_of(plan)
        self._states: dict[str, str] = {cell.fingerprint: status_of(cell) for cell in cells}
        self._cells = list(cells)
        self._live = Live(
            get_renderable=self._table, console=console, refresh_per_second=1, transient=True
        ) if console.is_terminal else None  # fmt: skip

    def __enter__(self) -> GridProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def report(self, cell: Cell, state: str) -> None:
        """Note the new state of a cell; print it, unless it only waits for its turn."""
        self._states[cell.fingerprint] = state
        if state == "submitted":
            return
        ended = Counter(self._states.values())
        number = f"{ended['done']} of {len(self._states)} done"
        text = f"{state}: {self._labels[cell.fingerprint]}"
        if state == "failed":
            failure = failure_of(cell)
            last = failure.message.splitlines()[-1:] if failure else []
            text = "\n  ".join([f"{text}: {Task(cell.folder).log}", *last])
        self._console.print(f"{number}; {text}{self._result(cell)}", soft_wrap=True)

    def _result(self, cell: Cell) -> str:
        summary = summary_of(cell)
        metric = self._plan.metrics[0]
        if summary is None or metric not in summary.metrics:
            return ""
        return f": {metric} {100 * summary.metrics[metric]:.1f}, {summary.wall_seconds:.0f} s"

    def _table(self) -> Table:
        counts = Counter(self._states.values())
        caption = ", ".join(f"{number} {state}" for state, number in counts.items())
        table = Table(box=None, pad_edge=False, header_style="bold", caption=caption)
        for column in ("cell", "fingerprint", "state", "step", self._plan.metrics[0]):
            table.add_column(column, overflow="fold")
        order = {"submitted": 0, "failed": 1, "blocked": 1}
        ordered = sorted(self._cells, key=lambda cell: order.get(self._states[cell.fingerprint], 2))
        for cell in ordered[:_MAX_ROWS]:
            state = self._states[cell.fingerprint]
            step = last_step(cell) if state in ("submitted", "unfinished") else 0
            table.add_row(
                self._labels[cell.fingerprint],
                cell.fingerprint,
                "running" if step and state == "submitted" else state,
                f"{step} of {cell.recipe.train.num_steps}" if step else "",
                self._result(cell).partition(",")[0].rpartition(" ")[2] if state == "done" else "",
            )
        return table


def labels_of(plan: Plan) -> dict[str, str]:
    """Return each run in words, by fingerprint; a run that several rows share has the words of the first."""
    labels: dict[str, str] = {}
    for row in plan.rows:
        for seed, end in row.cells.items():
            for stage, cell in zip(plan.grid.stages or [""], end.chain, strict=True):
                name = f"{stage}: " if stage else ""
                labels.setdefault(cell.fingerprint, f"{name}{row.point.label}, seed={seed}")
    return labels
