"""A run beside other runs and beside what papers print: a table, bars and a radar for each suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin
from pathlib import Path

import yaml

from muco.report.formatting import percent, title
from muco.report.read import RunFiles
from muco.report.records import Published, SuiteScores
from muco.run_folder import differences

_COLUMNS = {
    "mmeb": ("meta_classification", "meta_vqa", "meta_retrieval", "meta_grounding", "ind", "ood", "mean"),
    "mbeir": ("S->S", "S->M", "M->S", "M->M", "mean"),
}
"""What the public tables print; of other suites, the averages that the runs have."""
_AXES = {"mmeb": _COLUMNS["mmeb"][:4], "mbeir": _COLUMNS["mbeir"][:4]}
"""What the radar shows; of other suites, the tasks."""
_MOST_AXES = 24
_MOST_DRAWN = 6
"""Polygons of a radar: more cannot be told apart."""
_RINGS = (0.25, 0.5, 0.75, 1.0)
_REACH = 38.0
"""Of the radar's outermost ring, on a drawing of 100 by 100."""


@dataclass(frozen=True)
class Cell:
    """A score; without one, why."""

    score: str
    width: str | None
    """For drawing, 0 to 100; None where there is nothing to draw."""
    of: str = ""
    """`5 of 36` where fewer tasks were scored than the average claims."""


@dataclass(frozen=True)
class Row:
    """A run's scores, or printed ones."""

    name: str
    is_published: bool
    colour: int | None
    """Of its bars and its polygon; None for a row that the radar leaves out."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Radar:
    """Polygons over spokes, on a drawing of 100 by 100."""

    rings: tuple[str, ...]
    spokes: tuple[tuple[float, float, float, float, str, str], ...]
    """End, place of the label, how it is anchored, and the label."""
    polygons: tuple[tuple[int, bool, str], ...]
    """Colour, whether it is printed by a paper, and points."""


@dataclass(frozen=True)
class Comparison:
    """One suite."""

    suite: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    radar: Radar | None
    changed_data: tuple[str, ...]
    """Tasks whose queries, candidates or right answers are not the same in all runs."""


@dataclass(frozen=True)
class Difference:
    """What another run's recipe says otherwise."""

    name: str
    lines: tuple[str, ...]


def comparisons_of(run: RunFiles, others: Sequence[RunFiles]) -> tuple[Comparison, ...]:
    """Return a comparison of each suite of `run` that has something to be held against."""
    found: list[Comparison] = []
    for suite in run.suites:
        named = [(run.recipe.name, suite)]
        for other in others:
            named += [(other.recipe.name, each) for each in other.suites if each.suite == suite.suite]
        printed = [each for each in published() if each.suite == suite.suite and _is_as_printed(suite)]
        if len(named) > 1 or printed:
            found.append(_comparison(suite.suite, _told_apart(named), printed))
    return tuple(found)


def differences_of(run: RunFiles, others: Sequence[RunFiles]) -> tuple[Difference, ...]:
    """Return how the recipe of each other run differs from this run's, as `key: other -> this`."""
    return tuple(
        Difference(other.recipe.name, tuple(differences(other.recipe_values, run.recipe_values)))
        for other in others
    )


@cache
def published() -> tuple[Published, ...]:
    """Return the scores that papers print."""
    text = (Path(__file__).parent / "published.yaml").read_text(encoding="utf-8")
    return tuple(map(Published.model_validate, yaml.safe_load(text)))


def _is_as_printed(suite: SuiteScores) -> bool:
    """Say whether a suite was run as papers print it: their M-BEIR is of local pools."""
    settings = suite.depends_on.get("suite")
    return not (isinstance(settings, dict) and settings.get("pool") == "global")


def _told_apart(named: Sequence[tuple[str, SuiteScores]]) -> list[tuple[str, SuiteScores]]:
    names = [name for name, _ in named]
    return [
        (f"{name} ({names[: place + 1].count(name)})" if names.count(name) > 1 else name, suite)
        for place, (name, suite) in enumerate(named)
    ]


def _comparison(
    suite: str, runs: Sequence[tuple[str, SuiteScores]], printed: Sequence[Published]
) -> Comparison:
    columns = _COLUMNS.get(suite) or _common_columns([each for _, each in runs])
    axes = _AXES.get(suite) or tuple(runs[0][1].tasks)
    drawn = [(name, _values(each)) for name, each in runs] + [(each.model, each.values) for each in printed]
    can_draw = 3 <= len(axes) <= _MOST_AXES
    shown = [
        place for place, (_, values) in enumerate(drawn) if can_draw and all(axis in values for axis in axes)
    ][:_MOST_DRAWN]
    rows = [
        Row(name, False, shown.index(place) if place in shown else None, _run_cells(each, columns))
        for place, (name, each) in enumerate(runs)
    ]
    for place, each in enumerate(printed, start=len(runs)):
        cells = tuple(_cell(each.values.get(column)) for column in columns)
        rows.append(Row(each.model, True, shown.index(place) if place in shown else None, cells))
    return Comparison(
        suite=suite,
        columns=tuple("ID" if column == "ind" else title(column.removeprefix("meta_")) for column in columns),
        rows=tuple(rows),
        radar=_radar(axes, [(place >= len(runs), drawn[place][1]) for place in shown]) if shown else None,
        changed_data=_changed_data([each for _, each in runs]),
    )


def _common_columns(suites: Sequence[SuiteScores]) -> tuple[str, ...]:
    names = dict.fromkeys(name for suite in suites for name in suite.averages if name != "mean")
    return (*names, "mean")


def _values(suite: SuiteScores) -> dict[str, float]:
    averages = {name: each.score for name, each in suite.averages.items()}
    return averages | {name: task.score for name, task in suite.tasks.items()}


def _run_cells(suite: SuiteScores, columns: Sequence[str]) -> tuple[Cell, ...]:
    cells: list[Cell] = []
    for column in columns:
        partial = suite.partial_averages.get(column)
        if partial is not None:
            cells.append(Cell(percent(partial.score), None, f"{partial.num_tasks} of {partial.of}"))
        else:
            average = suite.averages.get(column)
            cells.append(_cell(None if average is None else average.score))
    return tuple(cells)


def _cell(score: float | None) -> Cell:
    if score is None:
        return Cell("", None)
    return Cell(percent(score), percent(min(max(score, 0.0), 1.0)))


def _changed_data(suites: Sequence[SuiteScores]) -> tuple[str, ...]:
    first = suites[0].tasks
    return tuple(
        name
        for name, task in first.items()
        if any(name in other.tasks and other.tasks[name].data != task.data for other in suites[1:])
    )


def _radar(axes: Sequence[str], drawn: Sequence[tuple[bool, Mapping[str, float]]]) -> Radar:
    spokes: list[tuple[float, float, float, float, str, str]] = []
    for place, axis in enumerate(axes):
        x, y = _place(place, len(axes), 1.0)
        label_x, label_y = _place(place, len(axes), 1.12)
        anchor = "middle" if abs(label_x - 50) < 4 else "start" if label_x > 50 else "end"
        spokes.append((x, y, label_x, label_y, anchor, title(axis.removeprefix("meta_"))))
    polygons = tuple(
        (colour, is_published, _polygon([values[axis] for axis in axes]))
        for colour, (is_published, values) in enumerate(drawn)
    )
    return Radar(tuple(_polygon([ring] * len(axes)) for ring in _RINGS), tuple(spokes), polygons)


def _polygon(values: Sequence[float]) -> str:
    places = (_place(place, len(values), min(max(value, 0.0), 1.0)) for place, value in enumerate(values))
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _place(spoke: int, num_spokes: int, share: float) -> tuple[float, float]:
    angle = 2 * pi * spoke / num_spokes
    return round(50 + _REACH * share * sin(angle), 2), round(50 - _REACH * share * cos(angle), 2)
