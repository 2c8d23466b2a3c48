"""Curves over training steps, laid out on a plot whose sides run from 0 to 100."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil, floor, isfinite, log10

from muco.report.formatting import count, measured, short

NUM_COLUMNS = 400
"""A log of any length becomes at most so many points; those of one column are averaged."""


@dataclass(frozen=True)
class Axis:
    """Where values lie between the two ends of a side."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def position(self, value: float) -> float:
        """Return the position of a value, 0 to 100."""
        low, high = (log10(self.low), log10(self.high)) if self.is_log else (self.low, self.high)
        value = log10(max(value, self.low)) if self.is_log else value
        return 100 * (value - low) / (high - low)


@dataclass(frozen=True)
class Point:
    """A point of a curve; `y` counts downwards, as SVG does."""

    x: float
    y: float
    step: int
    value: float


@dataclass(frozen=True)
class Chart:
    """A curve as the template draws it."""

    title: str
    line: str
    trend: str
    """A running mean, where the curve is noisy and long enough for one; else empty."""
    points: tuple[Point, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    @property
    def readings(self) -> list[tuple[float, float, int, str]]:
        """What hovering shows: position, step and value of each point."""
        return [(point.x, point.y, point.step, measured(point.value)) for point in self.points]


def draw(
    title: str, curve: Sequence[tuple[int, float]], *, steps: Axis, values: Axis, is_noisy: bool = True
) -> Chart:
    """Lay out one curve of (step, value); a value that is not finite leaves a gap."""
    columns = _columns(curve, steps, values)
    return Chart(
        title=title,
        line=_path(columns),
        trend=_path(_running_mean(columns)) if is_noisy and len(columns) >= 40 else "",
        points=tuple(point for point in columns if point is not None),
        x_ticks=tuple((round(steps.position(tick), 2), count(tick)) for tick in steps.ticks),
        y_ticks=tuple((round(100 - values.position(tick), 2), short(tick)) for tick in values.ticks),
    )


def value_axis(values: Sequence[float], *, num_ticks: int = 4) -> Axis:
    """Return an axis with round ends that holds all finite values, and zero where that costs little."""
    finite = [value for value in values if isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if low >= 0 and low < 0.6 * high:
        low = 0.0
    if high - low <= max(1e-30, 1e-9 * abs(high)):  # a level curve runs through the middle
        reach = abs(high) if abs(high) > 1e-30 else 1.0
        low, high = low - reach, high + reach
    size = _round_size((high - low) / num_ticks)
    first, last = floor(low / size + 1e-9), ceil(high / size - 1e-9)
    return Axis(first * size, last * size, tuple(i * size for i in range(first, last + 1)))


def step_axis(steps: Sequence[int], *, num_ticks: int = 5) -> Axis:
    """Return an axis from step 0 to the last step."""
    last = max(*steps, 1)
    size = max(1, _round_size(last / num_ticks))
    return Axis(0, last, tuple(i * size for i in range(floor(last / size) + 1)))


def log_step_axis(steps: Sequence[int]) -> Axis:
    """Return a logarithmic axis from the first step to the last."""
    first = max(1, min(steps))
    last = max(*steps, first + 1)
    decades = range(floor(log10(first)), ceil(log10(last)) + 1)
    fine = (1,) if len(decades) > 4 else (1, 2, 5)
    ticks = (part * 10.0**decade for decade in decades for part in fine)
    return Axis(first, last, tuple(tick for tick in ticks if first <= tick <= last), is_log=True)


def _round_size(least: float) -> float:
    power = 10.0 ** floor(log10(least))
    return next(power * part for part in (1, 2, 5, 10) if power * part >= least * (1 - 1e-9))


def _columns(curve: Sequence[tuple[int, float]], steps: Axis, values: Axis) -> list[Point | None]:
    columns = groupby(curve, key=lambda point: round(steps.position(point[0]) * NUM_COLUMNS / 100))
    return [_mean_point(list(column), steps, values) for _, column in columns]


def _mean_point(column: list[tuple[int, float]], steps: Axis, values: Axis) -> Point | None:
    finite = [(step, value) for step, value in column if isfinite(value)]
    if not finite:
        return None
    step = finite[-1][0]
    value = sum(value for _, value in finite) / len(finite)
    return Point(round(steps.position(step), 2), round(100 - values.position(value), 2), step, value)


def _running_mean(columns: Sequence[Point | None]) -> list[Point | None]:
    most = max(2, len(columns) // 40)
    smooth: list[Point | None] = []
    for index, point in enumerate(columns):
        reach = min(most, index, len(columns) - 1 - index)  # even on both sides, so that ends stay put
        near = [p.y for p in columns[index - reach : index + reach + 1] if p is not None]
        smooth.append(replace(point, y=round(sum(near) / len(near), 2)) if point else None)
    return smooth


def _path(columns: Sequence[Point | None]) -> str:
    path, is_down = "", False
    for point in columns:
        if point is not None:
            position = f"{point.x:g} {point.y:g}"
            path += f"L{position}" if is_down else f"M{position}h0"  # h0: a single point shows as a dot
        is_down = point is not None
    return path
