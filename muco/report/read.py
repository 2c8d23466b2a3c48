"""Read the files of a run folder, as many as there are."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from muco.core.errors import MucoError
from muco.report.records import LoggedStep, RecipeOutline, SuiteGallery, SuiteScores, Summary, Unreadable

R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class RunFiles:
    """All that a run folder says; what it lacks is empty or None."""

    recipe: RecipeOutline
    recipe_text: str
    recipe_values: dict[str, Any]
    is_trained: bool
    """Whether the folder is a run's; else it holds the results of a model that came from elsewhere."""
    command: str
    """The command line that continues this run, without its options."""
    environment: dict[str, Any]
    log: tuple[LoggedStep, ...]
    summary: Summary | None
    suites: tuple[SuiteScores, ...]
    galleries: tuple[SuiteGallery, ...]
    unreadable: tuple[Unreadable, ...]


def read_run(folder: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        MucoError: there is no recipe.yaml, or a file is not what muco writes.
    """
    source = folder / "recipe.yaml"
    is_trained = source.is_file()
    if not is_trained and (folder / "evaluation.yaml").is_file():
        source = folder / "evaluation.yaml"
    text = _recipe_text(source)
    recipe, values = _recipe(source, text)
    galleries = sorted(folder.glob("eval/*.gallery.json"))
    suites = [path for path in sorted(folder.glob("eval/*.json")) if path not in galleries]
    return RunFiles(
        recipe=recipe,
        recipe_text=text,
        recipe_values=values,
        is_trained=is_trained,
        command=_command(folder),
        environment=_mapping(folder / "environment.json"),
        log=_lines(folder / "train.jsonl", LoggedStep),
        summary=_optional(folder / "summary.json", Summary),
        suites=tuple(_checked(path, SuiteScores, _json(path)) for path in suites),
        galleries=tuple(_checked(path, SuiteGallery, _json(path)) for path in galleries),
        unreadable=_lines(folder / "unreadable.jsonl", Unreadable),
    )


def _recipe_text(path: Path) -> str:
    if not path.is_file():
        raise MucoError(
            f"{path.parent}: no run folder, it has no recipe.yaml.\n"
            "Name the folder of a run, runs/<name>; `muco-run RECIPE` makes one."
        )
    return path.read_text(encoding="utf-8", errors="replace")


def _recipe(path: Path, text: str) -> tuple[RecipeOutline, dict[str, Any]]:
    try:
        values = yaml.safe_load(text)
        return _checked(path, RecipeOutline, values), values
    except yaml.YAMLError as error:
        raise MucoError(f"{path}: not YAML: {error}\nRestore the file that the run wrote.") from None


def _command(folder: Path) -> str:
    """Name the recipe as seen from beside `runs/`; a page that is passed on shows no home folder."""
    whole = folder.resolve()
    return "muco-run " + shlex.quote(f"{whole.parent.name}/{whole.name}/recipe.yaml")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (json.JSONDecodeError, OSError) as error:
        raise MucoError(f"{path}: not JSON: {error}\nRemove the file and make it again.") from None


def _mapping(path: Path) -> dict[str, Any]:
    found = _json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise MucoError(f"{path}: must hold a mapping.\nRemove the file and make it again.")
    return found


def _optional(path: Path, record: type[R]) -> R | None:
    return _checked(path, record, _json(path)) if path.is_file() else None


def _checked(path: Path, record: type[R], value: Any) -> R:
    try:
        return record.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise MucoError(
            f"{path}: not what this version of muco writes: {where}: {first['msg']}\n"
            "Make the file again, or read it with the version that wrote it (environment.json)."
        ) from None


def _lines(path: Path, record: type[R]) -> tuple[R, ...]:
    """Read a file of JSON lines; a last line cut short by a stop is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    found: list[R] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise MucoError(f"{path}: line {number} is not JSON: {error}\nRemove that line.") from None
        if value is not None:
            found.append(_checked(path, record, value))
    return tuple(found)
