"""What the files of a cell say: done, failed or unfinished."""

from __future__ import annotations

import shlex
from typing import Literal

import yaml

from muco.ablation.cells import Cell
from muco.ablation.launch.task import Failure, Task
from muco.io.atomic import write_text
from muco.io.untrusted import parse_json, read_file
from muco.run_folder import RunFolder, Summary, validate_record
from muco.training.log import LOG_FILE

Status = Literal["done", "failed", "unfinished", "missing"]


def summary_of(cell: Cell) -> Summary | None:
    """Return the result of a cell that is done."""
    run = RunFolder(cell.folder)
    summary = run.summary()
    return summary if summary is not None and run.is_done(summary, cell.recipe) else None


def status_of(cell: Cell) -> Status:
    """Return what became of a cell in earlier commands."""
    if summary_of(cell) is not None:
        return "done"
    if Task(cell.folder).failure.is_file():
        return "failed"
    return "unfinished" if cell.folder.is_dir() else "missing"


def failure_of(cell: Cell) -> Failure | None:
    """Return how a cell failed, None for one that did not; raise MucoError if the file is damaged."""
    path = Task(cell.folder).failure
    values = RunFolder(path.parent).read(path.name)
    return None if values is None else validate_record(path, Failure, values)


def last_step(cell: Cell) -> int:
    """Return the last step that the run has logged."""
    try:
        line = read_file(cell.folder / LOG_FILE).rstrip(b"\n").rpartition(b"\n")[2]
        return int(parse_json(line)["step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0


def write_recipe(cell: Cell, label: str) -> None:
    """Write the resolved recipe beside the run folder, with the command that runs it."""
    task = Task(cell.folder)
    text = yaml.safe_dump(cell.recipe.dump(), sort_keys=False, allow_unicode=True, width=100)
    header = f"# {label}\n".replace("\r", " ") + f"#   muco-run {shlex.join(task.command)}\n"
    write_text(task.recipe, header + text)
