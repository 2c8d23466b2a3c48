"""Expand a grid into cells: resolved recipes, each with a fingerprint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from muco.ablation.grid import Grid, load_grid
from muco.ablation.points import Change, Point, axes_of, baseline_of, check_excluded, points_of
from muco.config.load import read_recipe, validate_settings
from muco.config.overrides import forget_lines, read_assignment, set_value
from muco.config.recipe import Recipe
from muco.config.schema_walk import is_component
from muco.config.yaml_lines import KeyPath, Lines
from muco.core.errors import MucoError, Problem, RecipeError
from muco.core.registry import Registry, default_registry
from muco.training.data import data_fingerprints

MAX_CELLS = 500
"""A larger grid needs `--yes`."""
_NO_EFFECT = ("num_workers", "log_every", "checkpoint_every", "keep_checkpoints")
"""Keys of `train` that do not change the result."""


@dataclass(frozen=True)
class Cell:
    """One run: a resolved recipe, identified by its content and that of its data."""

    fingerprint: str
    recipe: Recipe
    folder: Path
    """The run folder."""
    parent: Cell | None
    """The run of the stage before; this one starts from its model."""

    @property
    def chain(self) -> list[Cell]:
        """The runs of the stages up to this one."""
        return [*(self.parent.chain if self.parent else ()), self]


@dataclass(frozen=True)
class Row:
    """One row of the table: a cell for each seed."""

    point: Point
    cells: dict[int, Cell]
    """The cell of the last stage, by seed."""


@dataclass(frozen=True)
class Plan:
    """A grid with all of its cells."""

    grid: Grid
    rows: tuple[Row, ...]
    baseline: Row
    metrics: tuple[str, ...]

    @property
    def axes(self) -> list[str]:
        """The names of the axes."""
        return axes_of(self.grid)

    def cells(self, values: dict[str, list[Any]] | None = None) -> list[Cell]:
        """Return the runs of all rows, or of those that match, once each, earlier stages first."""
        values = dict(values or {})
        seeds = values.pop("seed", list(self.grid.seeds))
        ends = [
            cell
            for row in self.rows
            if row.point.matches(values)
            for seed, cell in row.cells.items()
            if seed in seeds
        ]
        chains = [cell.chain for cell in ends]
        stages = [chain[stage] for stage in range(len(chains[0]) if chains else 0) for chain in chains]
        return list({cell.fingerprint: cell for cell in stages}.values())


def plan_grid(
    name: str, folder: Path, *, bases: Sequence[str] = (), overrides: Sequence[str] = (), yes: bool = False
) -> Plan:
    """Read a grid and resolve every cell.

    Args:
        name: a path, or the name of a shipped grid.
        folder: of all grids' results; run folders are in its `cells`.
        bases: see `load_grid`.
        overrides: `KEY=VALUE` each, set in every cell after all else.
        yes: allow more than `MAX_CELLS` cells.

    Raises:
        MucoError: the grid is too large, or a file is missing.
        RecipeError: the grid or its cells have problems; the error lists all of them.
    """
    grid, lines = load_grid(name, bases=bases)
    if grid.num_cells > MAX_CELLS and not yes:
        raise MucoError(
            f"{name}: {grid.num_cells:,} cells, which is more than {MAX_CELLS}. "
            "Take values out, or start them with --yes."
        )
    points = points_of(grid)
    problems = list(check_excluded(grid))
    chosen = baseline_of(grid, points)
    if isinstance(chosen, Problem):
        problems.append(chosen)
    builder = _Builder(grid, lines, folder, overrides)
    rows = [Row(point, builder.cells(point)) for point in points] if not problems else []
    problems += builder.problems.values()
    if problems := [_with_line(each, lines) for each in problems or _same_cells(rows)]:
        raise RecipeError(name, sorted(problems, key=lambda each: each.line or 0))
    baseline = next(row for row in rows if row.point is chosen)
    return Plan(grid, tuple(rows), baseline, grid.metrics or _default_metrics(name, rows))


def _with_line(problem: Problem, lines: Lines) -> Problem:
    """Return a problem of the grid's own keys with its line."""
    path: KeyPath = tuple(int(part) if part.isdecimal() else part for part in problem.path.split("."))
    return problem if problem.line else Problem(problem.path, problem.message, lines.get(path))


def _same_cells(rows: Sequence[Row]) -> Iterator[Problem]:
    """Yield a problem for each two rows whose recipes are the same."""
    seen: dict[str, Row] = {}
    for row in rows:
        for cell in list(row.cells.values())[:1]:
            other = seen.setdefault(cell.fingerprint, row)
            if other is not row:
                message = f"two cells are the same: {other.point.label}; and {row.point.label}"
                yield Problem("", f"{message}. Remove one, or list it in `exclude`")


def _default_metrics(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    for row in rows:
        for cell in row.cells.values():
            for suite in cell.recipe.evaluate.suites:
                return (f"{suite.label}/mean",)
    raise MucoError(
        f"{name}: nothing to compare: the recipes of the last stage have no suite, and the grid has no "
        "`metrics`. Add --set 'evaluate.suites=[{name: scenes}]', say."
    )


@dataclass
class _Builder:
    """Resolve the cells of a grid, and collect the problems of all of them."""

    grid: Grid
    lines: Lines
    folder: Path
    overrides: Sequence[str]
    problems: dict[tuple[Any, ...], Problem] = field(default_factory=dict)
    registry: Registry = field(default_factory=default_registry)
    _bases: dict[str, dict[str, Any]] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)

    def cells(self, point: Point) -> dict[int, Cell]:
        """Return the cell of the last stage by seed; those with problems are left out."""
        cells: dict[int, Cell] = {}
        for seed in self.grid.seeds:
            cell = None
            for stage in self.grid.stages or [None]:
                cell = self._cell(point, seed, stage, cell)
                if cell is None:
                    return cells
            assert cell is not None
            cells[seed] = cell
        return cells

    def _cell(self, point: Point, seed: int, stage: str | None, parent: Cell | None) -> Cell | None:
        own = self.grid.stages[stage] if stage else None
        base = own.base if own else self.grid.base
        assert base is not None
        values = deepcopy(self._base(base))
        lines: Lines = {}
        changes = [Change(key, value, ("set", key)) for key, value in self.grid.set.items()]
        if stage and own:
            changes += [Change(key, value, ("stages", stage, "set", key)) for key, value in own.set.items()]
        # Whole components before settings of components.
        changes += sorted(point.changes, key=lambda change: change.key.count("."))
        changes += [Change(*read_assignment("--set", each), source=()) for each in self.overrides]
        for change in changes:
            self._apply(values, lines, change, stage)
        values["seed"] = seed
        if parent is not None:
            backbone = values.setdefault("backbone", {})
            backbone["pretrained"] = f"{parent.folder / 'model'}"
            backbone.pop("random_init", None)
        values["name"] = "cell"
        try:
            recipe = validate_settings(Recipe, values, title="", lines=lines)
        except RecipeError as error:
            for problem in error.problems:
                self._add(problem, point)
            return None
        fingerprint = self._fingerprint(recipe, parent)
        recipe = recipe.model_copy(update={"name": fingerprint})
        return Cell(fingerprint, recipe, self.folder / "cells" / fingerprint, parent)

    def _base(self, base: str) -> dict[str, Any]:
        if base not in self._bases:
            self._bases[base] = read_recipe(base)[0]
        return self._bases[base]

    def _apply(self, values: dict[str, Any], lines: Lines, change: Change, stage: str | None) -> None:
        """Set one value where it is of this stage, with the lines that it has in the grid's file."""
        key = self.grid.key_in_stages(change.key)
        if key != change.key and change.key.partition(".")[0] != stage:
            return
        line = self.lines.get(change.source)
        try:
            path = set_value(
                "the recipe", values, key, deepcopy(change.value),
                lambda path: is_component(path, Recipe, values, self.registry),
            )  # fmt: skip
        except MucoError as error:
            self.problems.setdefault((key, str(error)), Problem(key, f"{error}", line))
            return
        forget_lines(lines, path)
        start = len(change.source)
        lines |= {
            (*path, *known[start:]): at
            for known, at in self.lines.items()
            if start and known[:start] == change.source
        }

    def _add(self, problem: Problem, point: Point) -> None:
        """Keep a problem once, with the first cell that has it where no line says where it comes from."""
        key = (problem.path, problem.message, problem.line)
        if key not in self.problems:
            where = "" if problem.line else f"cell {point.label}: "
            self.problems[key] = Problem(problem.path, where + problem.message, problem.line)

    def _fingerprint(self, recipe: Recipe, parent: Cell | None) -> str:
        values = recipe.dump()
        del values["name"]
        for key in _NO_EFFECT:
            del values["train"][key]
        if parent is not None:
            values["backbone"]["pretrained"] = parent.fingerprint
        text = json.dumps([values, self._data_hash(recipe, values["data"])], sort_keys=True)
        return blake2b(text.encode(), digest_size=6).hexdigest()

    def _data_hash(self, recipe: Recipe, data: Any) -> str:
        key = json.dumps(data, sort_keys=True)
        if key not in self._hashes:
            self._hashes[key] = json.dumps(data_fingerprints(recipe.data), sort_keys=True)
        return self._hashes[key]
