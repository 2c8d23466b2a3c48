"""The training section: its curves, and the numbers beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from statistics import median

from muco.report.charts import Axis, Chart, draw, log_step_axis, step_axis, value_axis
from muco.report.formatting import count, percent, title
from muco.training.log import LoggedStep, LoggedValidation

Curve = list[tuple[int, float]]

_MAX_AVERAGES = 8
"""Curves of validations that are drawn."""


@dataclass(frozen=True)
class Training:
    """What the section shows."""

    last_step: int
    loss: tuple[Chart, ...]
    """Over the logarithm of the step, then over the step; none where no loss was logged."""
    small: tuple[Chart, ...]
    validation: tuple[Chart, ...]
    """Averages of the validations; none without validations."""
    facts: tuple[tuple[str, str], ...]
    broken_steps: tuple[int, ...]
    """Logged steps whose loss is not finite."""
    table: tuple[LoggedStep, ...]
    """At most 24 of the logged steps, the last one included."""


def training_of(log: Sequence[LoggedStep], validations: Sequence[LoggedValidation] = ()) -> Training:
    """Prepare the section from a log of at least one line."""
    return Training(
        last_step=log[-1].step,
        loss=_loss_charts(_curve(log, "loss")),
        small=tuple(_small_charts(log)),
        validation=tuple(_validation_charts(validations)),
        facts=tuple(_facts(log)),
        broken_steps=tuple(step for step, loss in _curve(log, "loss") if not isfinite(loss)),
        table=tuple(reversed(log[:: -max(1, len(log) // 24)]))[-24:],
    )


def _curve(log: Sequence[LoggedStep], field: str) -> Curve:
    return [(line.step, getattr(line, field)) for line in log if getattr(line, field) is not None]


def _loss_charts(curve: Curve) -> tuple[Chart, ...]:
    if not curve:
        return ()
    steps, losses = zip(*curve, strict=True)
    axes = (log_step_axis(steps), step_axis(steps))
    return tuple(draw("Loss", curve, steps=axis, values=value_axis(losses)) for axis in axes)


def _small_charts(log: Sequence[LoggedStep]) -> list[Chart]:
    few_ticks = partial(value_axis, num_ticks=2)
    rows: list[tuple[str, str, Callable[[Sequence[float]], Axis]]] = [
        ("In-batch accuracy", "in_batch_accuracy", lambda _: Axis(0, 1, (0, 0.5, 1))),
        ("Gradient norm", "grad_norm", few_ticks),
        ("Learning rate", "lr", few_ticks),
        ("Pairs a second", "pairs_per_second", few_ticks),
    ]
    charts: list[Chart] = []
    for name, field, axis in rows:
        if curve := _curve(log, field):
            steps = step_axis([step for step, _ in curve], num_ticks=3)
            values = axis([value for _, value in curve])
            charts.append(draw(name, curve, steps=steps, values=values, is_noisy=field != "lr"))
    return charts


def _validation_charts(validations: Sequence[LoggedValidation]) -> list[Chart]:
    """Return a chart of each of the first averages over the steps."""
    names = dict.fromkeys(name for line in validations for name in line.averages)
    charts: list[Chart] = []
    for name in list(names)[:_MAX_AVERAGES]:
        curve = [(line.step, line.averages[name]) for line in validations if name in line.averages]
        steps = step_axis([step for step, _ in curve], num_ticks=3)
        values = value_axis([score for _, score in curve], num_ticks=2)
        charts.append(draw(name, curve, steps=steps, values=values))
    return charts


def _facts(log: Sequence[LoggedStep]) -> list[tuple[str, str]]:
    """Return medians over the log: one slow step does not change them."""
    rows: list[tuple[str, str, Callable[[float], str]]] = [
        ("pairs a second", "pairs_per_second", count),
        ("samples a second", "samples_per_second", count),
        ("tokens a step", "tokens", count),
        ("% of them padding", "padding_share", percent),
        ("% of the time waiting for data", "wait_share", percent),
    ]
    facts: list[tuple[str, str]] = []
    for label, field, write in rows:
        if values := [value for _, value in _curve(log, field) if isfinite(value)]:
            facts.append((write(median(values)), label))
    for name in dict.fromkeys(name for line in log for name in line.counts):
        number = median(line.counts.get(name, 0) for line in log)
        if isfinite(number):
            facts.append((count(number), f"{title(name).lower()} a step"))
    return facts
