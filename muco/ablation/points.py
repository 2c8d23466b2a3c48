"""The product of a grid's variants, paired values and axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml

from muco.ablation.grid import SEED, VARIANT, Changes, Grid
from muco.config.overrides import read_assignment
from muco.config.yaml_lines import KeyPath
from muco.core.errors import MucoError, Problem, did_you_mean


@dataclass(frozen=True)
class Change:
    """A value that a cell sets, and where the grid's file has it."""

    key: str
    value: Any
    source: KeyPath


@dataclass(frozen=True)
class Point:
    """One row of the table: a value on each axis. It runs once with each seed."""

    values: Changes
    """By axis; `variant` has the name of a variant."""
    changes: tuple[Change, ...]

    @property
    def label(self) -> str:
        """All values in words."""
        return ", ".join(f"{key}={in_words(value)}" for key, value in self.values.items()) or "base"

    def matches(self, expected: Changes) -> bool:
        """Return whether the point has all of these values; a list stands for any of its values."""
        return all(key in self.values and _is(self.values[key], value) for key, value in expected.items())


def _is(value: Any, expected: Any) -> bool:
    return value == expected or (isinstance(expected, list) and value in expected)


def points_of(grid: Grid) -> list[Point]:
    """Return the points in the order of the file, without those that are excluded."""
    points = [_point(choice) for choice in product(*_dimensions(grid))]
    return [point for point in points if not any(point.matches(entry) for entry in grid.exclude)]


Option = tuple[Changes, tuple[Change, ...]]


def _point(choice: Sequence[Option]) -> Point:
    values: Changes = {}
    for own, _ in choice:
        values |= own
    return Point(values, tuple(change for _, changes in choice for change in changes))


def _dimensions(grid: Grid) -> Iterator[list[Option]]:
    if grid.variants:
        yield [
            ({VARIANT: name}, tuple(Change(key, changes[key], ("variants", name, key)) for key in changes))
            for name, changes in grid.variants.items()
        ]
    for index, group in enumerate(grid.paired):
        yield [
            (
                dict(zip(group, row, strict=True)),
                tuple(
                    Change(key, value, ("paired", index, key, number))
                    for key, value in zip(group, row, strict=True)
                ),
            )
            for number, row in enumerate(zip(*group.values(), strict=True))
        ]
    for key, values in grid.axes.items():
        yield [
            ({key: value}, (Change(key, value, ("axes", key, index)),)) for index, value in enumerate(values)
        ]


def axes_of(grid: Grid) -> list[str]:
    """Return the names of the axes, in the order of the table's columns."""
    variant = [VARIANT] if grid.variants else []
    return [*variant, *(key for group in grid.paired for key in group), *grid.axes]


def baseline_of(grid: Grid, points: Sequence[Point]) -> Point | Problem:
    """Return the point that others are compared with, or what is wrong with the grid's choice."""
    if not points:
        return Problem("exclude", "all cells are excluded")
    if not grid.baseline:
        return points[0]
    for key, value in grid.baseline.items():
        if problem := _unknown(grid, key, value, points):
            return Problem("baseline", problem)
    matching = [point for point in points if point.matches(grid.baseline)]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        return Problem("baseline", "no cell has these values together")
    missing = [key for key in axes_of(grid) if key not in grid.baseline]
    return Problem(
        "baseline", f"{len(matching)} cells have these values; add a value of {' or '.join(missing)}"
    )


def _unknown(grid: Grid, key: str, value: Any, points: Sequence[Point]) -> str | None:
    axes = axes_of(grid)
    if key not in axes:
        near = did_you_mean(key, axes)
        return f"no axis named {key!r}.{near}" + ("" if near else f" Axes: {', '.join(axes)}")
    known = [point.values[key] for point in points]
    if any(_is(each, value) for each in known):
        return None
    return (
        f"no cell has {key}: {in_words(value)}. Its values: {', '.join(dict.fromkeys(map(in_words, known)))}"
    )


def check_excluded(grid: Grid) -> Iterator[Problem]:
    """Yield what is wrong with the entries of `exclude`."""
    everything = [_point(choice) for choice in product(*_dimensions(grid))]
    for index, entry in enumerate(grid.exclude):
        for key, value in entry.items():
            if problem := _unknown(grid, key, value, everything):
                yield Problem(f"exclude.{index}", problem)


def selection_of(grid: Grid, only: Sequence[str], points: Sequence[Point]) -> Changes:
    """Return what `--only KEY=VALUE` asks for, by axis; repeated keys stand for any of their values.

    Raise MucoError if there is no such axis, or no cell with that value.
    """
    chosen: dict[str, list[Any]] = {}
    for each in only:
        key, value = read_assignment("--only", each)
        if key == SEED:
            seeds = ", ".join(map(str, grid.seeds))
            problem = None if value in grid.seeds else f"no such seed. Seeds: {seeds}"
        else:
            problem = _unknown(grid, key, value, points)
        if problem:
            raise MucoError(f"--only {each}: {problem}")
        chosen.setdefault(key, []).append(value)
    return chosen


def in_words(value: Any) -> str:
    """Return a value as one short line of YAML; a component as its name and settings."""
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        settings = ", ".join(f"{key}={in_words(each)}" for key, each in value.items() if key != "name")
        return f"{value['name']}({settings})" if settings else value["name"]
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
