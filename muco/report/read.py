"""Read the files of a run folder, as many as there are."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from muco.config.yaml_lines import read_yaml
from muco.core.errors import MucoError
from muco.evaluation.results import Gallery, SuiteScores
from muco.io.untrusted import parse_json, read_file
from muco.run_folder import RunFolder, Summary, validate_record
from muco.training.log import (
    LOG_FILE,
    UNREADABLE_FILE,
    VALIDATION_FILE,
    LoggedStep,
    LoggedValidation,
    UnreadableSample,
)

R = TypeVar("R")

_SETTINGS = ("recipe.yaml", "evaluation.yaml")
"""Of a run, and of a model from elsewhere that was evaluated in the folder."""


@dataclass(frozen=True)
class Named:
    """A component or a suite of a recipe."""

    name: str


@dataclass(frozen=True)
class TrainOutline:
    """What the page needs of a recipe's `train`."""

    num_steps: int | None = None


@dataclass(frozen=True)
class RecipeOutline:
    """The names in a recipe; the plugins behind them need not be installed."""

    name: str
    data: dict[str, Any] | None = None
    packer: Named | None = None
    backbone: Named | None = None
    loss: Named | None = None
    train: TrainOutline = TrainOutline()
    evaluate: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run folder; what it lacks is empty or None."""

    recipe: RecipeOutline
    recipe_text: str
    recipe_values: dict[str, Any]
    is_trained: bool
    """Whether the folder is a run's; else it holds the results of a model that came from elsewhere."""
    command: str
    """The command line that continues this run, without its options."""
    environment: dict[str, Any]
    log: tuple[LoggedStep, ...]
    validations: tuple[LoggedValidation, ...]
    summary: Summary | None
    suites: tuple[SuiteScores, ...]
    galleries: tuple[Gallery, ...]
    unreadable: tuple[UnreadableSample, ...]


def read_run(folder: Path) -> RunFiles:
    """Read a run folder; raise MucoError if it is none, or a file is not what muco writes."""
    run = RunFolder(folder)
    source = next((path for path in (run.path / name for name in _SETTINGS) if path.is_file()), None)
    if source is None:
        raise MucoError(
            f"{folder}: not a run folder, it has no recipe.yaml.\n"
            "Name the folder of a run, runs/<name>; `muco-run RECIPE` makes one."
        )
    text = source.read_text(encoding="utf-8", errors="replace")
    values, _ = read_yaml(f"{source}", text)
    galleries = sorted(folder.glob("eval/*.gallery.json"))
    suites = [path for path in sorted(folder.glob("eval/*.json")) if path not in galleries]
    return RunFiles(
        recipe=validate_record(source, RecipeOutline, values),
        recipe_text=text,
        recipe_values=values,
        is_trained=source.name == "recipe.yaml",
        command=_command(folder),
        environment=run.read("environment.json") or {},
        log=_lines(folder / LOG_FILE, LoggedStep),
        validations=_lines(folder / VALIDATION_FILE, LoggedValidation),
        summary=run.summary(),
        suites=tuple(_record(path, SuiteScores) for path in suites),
        galleries=tuple(_record(path, Gallery) for path in galleries),
        unreadable=_lines(folder / UNREADABLE_FILE, UnreadableSample),
    )


def _command(folder: Path) -> str:
    """Name the recipe as seen from beside `runs/`: a page that is passed on shows no home folder."""
    path = folder.resolve()
    return "muco-run " + shlex.quote(f"{path.parent.name}/{path.name}/recipe.yaml")


def _record(path: Path, record: type[R]) -> R:
    try:
        values = parse_json(read_file(path).decode(errors="replace"))
    except (ValueError, OSError) as error:
        raise MucoError(f"{path}: not JSON: {error}\nRemove the file and make it again.") from None
    return validate_record(path, record, values)


def _lines(path: Path, record: type[R]) -> tuple[R, ...]:
    """Read a file of JSON lines; a last line that a killed run cut short is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    records: list[R] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise MucoError(f"{path}: line {number} is not JSON: {error}\nRemove that line.") from None
        records.append(validate_record(path, record, values))
    return tuple(records)
