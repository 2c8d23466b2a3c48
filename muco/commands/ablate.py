"""`muco ablate`: run the cells of a grid that are not done, and write its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from muco.ablation.cells import Cell, Plan, plan_grid
from muco.ablation.forecast import counted_flops, forecast
from muco.ablation.launch.task import Launcher
from muco.ablation.page import render
from muco.ablation.points import selection_of
from muco.ablation.progress import GridProgress, labels_of
from muco.ablation.results import check_metrics, results_of
from muco.ablation.schedule import run_cells
from muco.ablation.state import status_of, write_recipe
from muco.ablation.table import csv_text, latex, markdown
from muco.config.overrides import read_assignment
from muco.core.errors import MucoError
from muco.io.atomic import write_text
from muco.report.formatting import duration

LauncherName = Literal["local", "slurm", "ray"]


class CellsFailedError(MucoError):
    """Some cells have no result; the others have."""

    exit_code = 1


def ablate(
    grid: str,
    *,
    console: Console,
    folder: Path = Path("runs/ablations"),
    bases: Sequence[str] = (),
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    launcher: LauncherName = "local",
    num_jobs: int = 1,
    num_processes: int = 1,
    resources: Sequence[str] = (),
    dry_run: bool = False,
    retry_failed: bool = False,
    fail_fast: bool = False,
    yes: bool = False,
) -> Path | None:
    """Run a grid and return the folder of its table; None for a dry run.

    The arguments are the options of `muco ablate`. Raise RecipeError if the grid or a cell of it has
    problems, MucoError for something else that the user can fix; a cell that failed among it.
    """
    given = dict(read_assignment("--resource", each) for each in resources)
    plan = plan_grid(grid, folder, bases=bases, overrides=overrides, yes=yes)
    cells = plan.cells(selection_of(plan.grid, only, [row.point for row in plan.rows]))
    if dry_run:
        _print_plan(plan, cells, console)
        return None
    labels = labels_of(plan)
    for cell in cells:
        write_recipe(cell, labels[cell.fingerprint])
    todo = [cell for cell in cells if _is_due(cell, retry_failed)]
    chosen = _launcher(launcher, num_jobs, num_processes, given, folder)
    console.print(f"{plan.grid.name}: {len(cells)} cells, {len(cells) - len(todo)} of them not to run")
    with GridProgress(plan, cells, console) as progress:
        run_cells(todo, chosen, progress.report, fail_fast=fail_fast, num_processes=num_processes)
    target = write_table(plan, folder / plan.grid.name)
    console.print((target / "table.md").read_text(encoding="utf-8"), soft_wrap=True)
    _raise_for_failures(cells)
    return target


def _is_due(cell: Cell, retry_failed: bool) -> bool:
    status = status_of(cell)
    return status != "done" and (status != "failed" or retry_failed)


def _launcher(
    name: LauncherName, num_jobs: int, num_processes: int, resources: dict[str, Any], folder: Path
) -> Launcher:
    if name == "slurm":
        from muco.ablation.launch.slurm import SlurmLauncher

        return SlurmLauncher(folder / "slurm", resources)
    if name == "ray":
        from muco.ablation.launch.ray import RayLauncher

        return RayLauncher(resources)
    from muco.ablation.launch.local import LocalLauncher

    return LocalLauncher(num_jobs, num_processes=num_processes)


def write_table(plan: Plan, folder: Path) -> Path:
    """Write a grid's table in all formats; raise MucoError if no run has a metric or a file is damaged."""
    results = results_of(plan)
    check_metrics(plan, results)
    for name, text in (("table.md", markdown), ("table.csv", csv_text), ("table.tex", latex)):
        write_text(folder / name, text(plan, results))
    write_text(folder / "index.html", render(plan, results, folder))
    return folder


def _raise_for_failures(cells: Sequence[Cell]) -> None:
    failed = [cell for cell in cells if status_of(cell) == "failed"]
    if failed:
        logs = "\n  ".join(f"{cell.folder}.log" for cell in failed)
        raise CellsFailedError(
            f"{len(failed)} of {len(cells)} cells failed; their logs:\n  {logs}\n"
            "--retry-failed runs them again."
        )


def _print_plan(plan: Plan, cells: Sequence[Cell], console: Console) -> None:
    """Print the cells, what is done, and what the others will take."""
    labels = labels_of(plan)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("fingerprint", "state", "steps", "batch", "PFLOPs", "cell"):
        table.add_column(column, no_wrap=column != "cell", overflow="fold")
    for cell in cells:
        train = cell.recipe.train
        table.add_row(
            cell.fingerprint, status_of(cell), f"{train.num_steps}", f"{train.global_batch_size}",
            "" if (flops := counted_flops(cell)) is None else f"{flops / 1e15:.3g}", labels[cell.fingerprint],
        )  # fmt: skip
    console.print(table)
    left = forecast(cells)
    seconds = (
        "no cell is done, so the time is not known"
        if left.seconds is None
        else f"about {duration(left.seconds)}, one after the other, by the cells that are done"
    )
    unknown = f", and those of {left.num_unknown} cells that are not known" if left.num_unknown else ""
    console.print(f"{left.num_cells} of {len(cells)} cells to run, {left.num_steps:,} steps: {seconds}")
    console.print(
        f"{left.flops / 1e15:.3g} PFLOPs of training{unknown}, for a batch as `muco-run --flops` assumes it"
    )
