"""Drawings of a grid's page, laid out on a plot whose sides run from 0 to 100; y counts downwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from muco.ablation.cells import Plan
from muco.ablation.points import in_words
from muco.ablation.results import RowResult, run_files
from muco.ablation.table import Unit, flops_unit
from muco.report.charts import value_axis
from muco.report.formatting import short
from muco.report.read import RunFiles

MAX_CURVES = 8
"""Readers cannot distinguish more colours."""
_MAX_POINTS = 120

Ticks = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Effect:
    """The mean score of all rows with each value of an axis."""

    axis: str
    means: tuple[tuple[float, float, str, str], ...]
    """Position, value and mean in words."""
    rows: tuple[tuple[float, float], ...]
    """Position of each row."""
    y_ticks: Ticks


@dataclass(frozen=True)
class HeatMap:
    """The mean score of all rows with each pair of values of two axes."""

    row_axis: str
    column_axis: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[float, float] | None, ...]], ...]
    """Value, and of each column the score and its share of the range, 0 to 1."""


@dataclass(frozen=True)
class Curve:
    """A line of one row, of its first seed."""

    label: str
    colour: int
    path: str


@dataclass(frozen=True)
class Curves:
    """Training of several rows over what it takes."""

    over: str
    curves: tuple[Curve, ...]
    x_ticks: Ticks
    y_ticks: Ticks


def effects_of(plan: Plan, results: Sequence[RowResult]) -> list[Effect]:
    """Return a main-effect plot of each axis with at least two values that have a score."""
    return [effect for axis in plan.axes if (effect := _effect(axis, _scored(plan, results)))]


def _scored(plan: Plan, results: Sequence[RowResult]) -> list[tuple[dict[str, Any], float]]:
    metric = plan.metrics[0]
    return [(each.row.point.values, each.scores[metric].mean) for each in results if metric in each.scores]


def _effect(axis: str, scored: Sequence[tuple[dict[str, Any], float]]) -> Effect | None:
    groups: dict[str, list[float]] = {}
    for values, score in scored:
        groups.setdefault(in_words(values[axis]), []).append(100 * score)
    if len(groups) < 2:
        return None
    side = value_axis([score for scores in groups.values() for score in scores])
    x = {value: 100 * (index + 0.5) / len(groups) for index, value in enumerate(groups)}

    def y(score: float) -> float:
        return round(100 - side.position(score), 2)

    means = {value: float(np.mean(scores)) for value, scores in groups.items()}
    return Effect(
        axis,
        tuple((round(x[value], 2), y(mean), value, f"{mean:.1f}") for value, mean in means.items()),
        tuple((round(x[value], 2), y(score)) for value, scores in groups.items() for score in scores),
        tuple((y(tick), short(tick)) for tick in side.ticks),
    )


def heat_maps_of(plan: Plan, results: Sequence[RowResult]) -> list[HeatMap]:
    """Return a heat map of each two axes that vary independently of each other."""
    scored = _scored(plan, results)
    maps = [_heat_map(first, second, scored) for first, second in combinations(plan.axes, 2)]
    return [each for each in maps if each is not None]


def _heat_map(first: str, second: str, scored: Sequence[tuple[dict[str, Any], float]]) -> HeatMap | None:
    groups: dict[tuple[str, str], list[float]] = {}
    for values, score in scored:
        groups.setdefault((in_words(values[first]), in_words(values[second])), []).append(score)
    rows, columns = (list(dict.fromkeys(pair[side] for pair in groups)) for side in (0, 1))
    if len(rows) < 2 or len(columns) < 2 or len(groups) <= max(len(rows), len(columns)):
        return None
    means = {pair: float(np.mean(scores)) for pair, scores in groups.items()}
    low, high = min(means.values()), max(means.values())

    def cell(pair: tuple[str, str]) -> tuple[float, float] | None:
        return None if pair not in means else (means[pair], (means[pair] - low) / ((high - low) or 1.0))

    return HeatMap(
        first, second, tuple(columns),
        tuple((row, tuple(cell((row, column)) for column in columns)) for row in rows),
    )  # fmt: skip


def curves_of(results: Sequence[RowResult]) -> list[Curves]:
    """Return in-batch accuracy over samples, and over FLOPs where they are logged, of the last stage."""
    runs: list[tuple[str, int, RunFiles, int]] = []
    for each in [each for each in results if each.seeds][:MAX_CURVES]:
        cell = each.row.cells[each.seeds[0]]
        batch = cell.recipe.train.global_batch_size
        runs.append((each.row.point.label, len(runs), run_files(cell.folder), batch))
    lines = [
        (label, colour, list(_progress(run, batch)))
        for label, colour, run, batch in runs
        if all(line.in_batch_accuracy is not None for line in run.log)
    ]
    over_samples = [(label, colour, [(s, y) for s, _, y in line]) for label, colour, line in lines]
    unit = flops_unit(results) or Unit("PFLOPs", 1e15)
    over_flops = [
        (label, colour, [(f / unit.size, y) for _, f, y in line if f is not None])
        for label, colour, line in lines
    ]
    drawn = [_curves("samples", over_samples)]
    if all(points for _, _, points in over_flops):
        drawn.append(_curves(unit.name, over_flops))
    return [each for each in drawn if each.curves]


def _progress(run: RunFiles, batch: int) -> Iterator[tuple[float, float | None, float]]:
    """Yield samples and FLOPs so far, and the in-batch accuracy, of each logged step."""
    flops, before = 0.0, 0
    for line in run.log:
        flops += (line.model_flops or 0) * (line.step - before)
        before = line.step
        accuracy = 100 * (line.in_batch_accuracy or 0.0)
        yield line.step * batch, flops if line.model_flops else None, accuracy


def _curves(over: str, lines: Sequence[tuple[str, int, list[tuple[float, float]]]]) -> Curves:
    lines = [line for line in lines if line[2]]
    x_side = value_axis([0.0, *(x for _, _, points in lines for x, _ in points)])
    y_side = value_axis([0.0, *(y for _, _, points in lines for _, y in points)])
    curves = tuple(Curve(label, colour, _path(points, x_side, y_side)) for label, colour, points in lines)
    return Curves(
        over,
        curves,
        tuple((round(x_side.position(tick), 2), short(tick)) for tick in x_side.ticks),
        tuple((round(100 - y_side.position(tick), 2), short(tick)) for tick in y_side.ticks),
    )


def _path(points: list[tuple[float, float]], x_side: Any, y_side: Any) -> str:
    every = max(1, len(points) // _MAX_POINTS)
    chosen = [*points[::every], *([points[-1]] if (len(points) - 1) % every else [])]
    return "M" + "L".join(f"{x_side.position(x):.2f} {100 - y_side.position(y):.2f}" for x, y in chosen)
