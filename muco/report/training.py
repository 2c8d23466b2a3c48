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
ValueAxis = Callable[[Sequence[float]], Axis]

_MAX_AVERAGES = 8
"""Curves of validations that are drawn."""
_few_ticks = partial(value_axis, num_ticks=2)


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
    rows: list[tuple[str, str, ValueAxis]] = [
        ("In-batch accuracy", "in_batch_accuracy", lambda _: Axis(0, 1, (0, 0.5, 1))),
        ("Gradient norm", "grad_norm", _few_ticks),
        ("Learning rate", "lr", _few_ticks),
        ("Pairs a second", "pairs_per_second", _few_ticks),
    ]
    return [
        _small_chart(name, curve, axis, is_noisy=field != "lr")
        for name, field, axis in rows
        if (curve := _curve(log, field))
    ]


def _validation_charts(validations: Sequence[LoggedValidation]) -> list[Chart]:
    """Return a chart of each of the first averages over the steps."""
    names = dict.fromkeys(name for line in validations for name in line.averages)
    curves = {
        name: [(line.step, line.averages[name]) for line in validations if name in line.averages]
        for name in list(names)[:_MAX_AVERAGES]
    }
    return [_small_chart(name, curve, _few_ticks) for name, curve in curves.items()]


def _small_chart(name: str, curve: Curve, axis: ValueAxis, *, is_noisy: bool = True) -> Chart:
    steps, values = zip(*curve, strict=True)
    return draw(name, curve, steps=step_axis(steps, num_ticks=3), values=axis(values), is_noisy=is_noisy)


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
