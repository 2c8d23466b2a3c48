"""A run beside other runs and the scores that papers print: a table, bars and a radar for each suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import cos, pi, sin
from pathlib import Path

from pydantic import FiniteFloat, TypeAdapter

from muco.config.yaml_lines import read_yaml
from muco.evaluation.results import PartialAverage, SuiteScores
from muco.report.formatting import title
from muco.report.read import RunFiles
from muco.run_folder import differences

_COLUMNS = {
    "mmeb": ("meta_classification", "meta_vqa", "meta_retrieval", "meta_grounding", "ind", "ood", "mean"),
    "mbeir": ("S->S", "S->M", "M->S", "M->M", "mean"),
}
"""The columns of the public tables; of other suites, the averages that the runs have."""
_AXES = {"mmeb": _COLUMNS["mmeb"][:4], "mbeir": _COLUMNS["mbeir"][:4]}
"""The axes of the radar; of other suites, the tasks."""
_MAX_AXES = 24
_MAX_POLYGONS = 6
"""More cannot be distinguished."""
_RINGS = (0.25, 0.5, 0.75, 1.0)
_RADIUS = 38.0
"""Of the outermost ring, on a drawing of 100 by 100."""


@dataclass(frozen=True)
class Published:
    """Scores that a paper prints."""

    suite: str
    model: str
    values: dict[str, FiniteFloat]


@dataclass
class Row:
    """The scores of a run, or of a paper."""

    name: str
    is_published: bool
    values: Mapping[str, float]
    """Averages and tasks, by name."""
    partial: Mapping[str, PartialAverage] = field(default_factory=dict[str, PartialAverage])
    """Means over fewer data sets than the average has. They are written, but not drawn."""
    colour: int | None = None
    """Of its bars and its polygon; None for a row that the radar leaves out."""


@dataclass(frozen=True)
class Radar:
    """Polygons over spokes, on a drawing of 100 by 100."""

    rings: list[str]
    spokes: list[tuple[float, float, float, float, str, str]]
    """End, position of the label, its text-anchor, and the label."""
    polygons: list[tuple[int, bool, str]]
    """Colour, whether a paper prints it, and points."""


@dataclass(frozen=True)
class Comparison:
    """One suite."""

    suite: str
    columns: tuple[tuple[str, str], ...]
    """Name of the average, and title."""
    rows: tuple[Row, ...]
    radar: Radar | None
    changed_data: tuple[str, ...]
    """Tasks whose queries, candidates or right answers are not the same in all runs."""


def comparisons_of(run: RunFiles, others: Sequence[RunFiles]) -> tuple[Comparison, ...]:
    """Return a comparison of each suite of `run` that another run or a paper has scores of."""
    comparisons: list[Comparison] = []
    theirs = [(other.recipe.name, each) for other in others for each in other.suites]
    for suite in run.suites:
        runs = [(run.recipe.name, suite), *(pair for pair in theirs if pair[1].suite == suite.suite)]
        papers = [each for each in published() if each.suite == suite.suite and _has_published_pools(suite)]
        if len(runs) > 1 or papers:
            comparisons.append(_comparison(runs, papers))
    return tuple(comparisons)


def differences_of(run: RunFiles, others: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Return the name of each other run, and how its recipe differs: `key: other -> this`."""
    return [(other.recipe.name, differences(other.recipe_values, run.recipe_values)) for other in others]


@cache
def published() -> tuple[Published, ...]:
    """Return the scores that papers print."""
    file = Path(__file__).parent / "published.yaml"
    values, _ = read_yaml(file.name, file.read_text(encoding="utf-8"))
    return TypeAdapter(tuple[Published, ...]).validate_python(values)


def _has_published_pools(suite: SuiteScores) -> bool:
    """Return whether a suite was run as papers run it: their M-BEIR searches local pools."""
    settings = suite.depends_on.get("suite")
    return not (isinstance(settings, dict) and settings.get("pool") == "global")


def _comparison(runs: Sequence[tuple[str, SuiteScores]], papers: Sequence[Published]) -> Comparison:
    first = runs[0][1]
    names = [name for name, _ in runs]
    rows: list[Row] = []
    for index, (name, scores) in enumerate(runs):
        number = f" ({names[: index + 1].count(name)})" if names.count(name) > 1 else ""
        rows.append(_row(name + number, scores))
    rows += [Row(each.model, True, each.values) for each in papers]
    averages = dict.fromkeys(name for _, scores in runs for name in scores.averages if name != "mean")
    columns = _COLUMNS.get(first.suite) or (*averages, "mean")
    axes = _AXES.get(first.suite) or tuple(first.tasks)
    can_draw = 3 <= len(axes) <= _MAX_AXES
    drawn = [row for row in rows if can_draw and all(axis in row.values for axis in axes)][:_MAX_POLYGONS]
    for colour, row in enumerate(drawn):
        row.colour = colour
    return Comparison(
        suite=first.suite,
        columns=tuple((name, _average_title(name)) for name in columns),
        rows=tuple(rows),
        radar=_radar(axes, drawn) if drawn else None,
        changed_data=tuple(
            name
            for name, task in first.tasks.items()
            if any(name in other.tasks and other.tasks[name].data != task.data for _, other in runs)
        ),
    )


def _row(name: str, scores: SuiteScores) -> Row:
    values = {name: result.score for name, result in (*scores.tasks.items(), *scores.averages.items())}
    return Row(name, False, values, scores.partial_averages)


def _average_title(name: str) -> str:
    return "ID" if name == "ind" else title(name.removeprefix("meta_"))


def _radar(axes: Sequence[str], rows: Sequence[Row]) -> Radar:
    spokes: list[tuple[float, float, float, float, str, str]] = []
    for index, axis in enumerate(axes):
        end, (label_x, label_y) = _point(index, len(axes), 1.0), _point(index, len(axes), 1.12)
        anchor = "middle" if abs(label_x - 50) < 4 else "start" if label_x > 50 else "end"
        spokes.append((*end, label_x, label_y, anchor, title(axis.removeprefix("meta_"))))
    polygons = [
        (colour, row.is_published, _polygon([row.values[axis] for axis in axes]))
        for colour, row in enumerate(rows)
    ]
    return Radar([_polygon([ring] * len(axes)) for ring in _RINGS], spokes, polygons)


def _polygon(values: Sequence[float]) -> str:
    points = (_point(index, len(values), min(max(value, 0.0), 1.0)) for index, value in enumerate(values))
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _point(spoke: int, num_spokes: int, share: float) -> tuple[float, float]:
    angle = 2 * pi * spoke / num_spokes
    return round(50 + _RADIUS * share * sin(angle), 2), round(50 - _RADIUS * share * cos(angle), 2)
