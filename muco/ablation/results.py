"""The results of a grid, row by row: means over seeds, and differences to the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from muco.ablation.cells import Cell, Plan, Row
from muco.ablation.state import summary_of
from muco.ablation.statistics import Array, Difference, compare, holm
from muco.core.errors import MucoError
from muco.evaluation.queries import queries_file, read_queries
from muco.evaluation.results import SuiteScores
from muco.report.read import RunFiles, read_run
from muco.run_folder import Summary

_SAME_BUDGET = 0.01
"""Budgets that differ by a larger share are marked."""


@dataclass(frozen=True)
class Scores:
    """One metric over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over seeds; None for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Budget:
    """What the training of a row took, a seed on average, over all stages."""

    samples: float
    """Samples trained on, repeats counted; each has about one image."""
    flops: float | None
    """Model FLOPs; None where the log does not have them."""

    def differs(self, other: Budget) -> list[str]:
        """Return what it needs more or less of than another: `samples`, `FLOPs`."""
        pairs = {"samples": (self.samples, other.samples), "FLOPs": (self.flops, other.flops)}
        return [
            name
            for name, (own, others) in pairs.items()
            if own is not None and others is not None and abs(own - others) > _SAME_BUDGET * others
        ]


@dataclass(frozen=True)
class RowResult:
    """A row of the table."""

    row: Row
    is_baseline: bool
    seeds: tuple[int, ...]
    """Those that are done."""
    scores: Mapping[str, Scores]
    """By metric, `scenes/mean`; of an earlier stage with its name before it, `pretrain: scenes/mean`."""
    budget: Budget | None
    difference: Difference | None
    """To the baseline, by the first metric. None for the baseline and where queries cannot be paired."""
    adjusted_p: float | None
    """The p value of the difference by Holm's method, over all rows."""
    unequal: tuple[str, ...]
    """What its budget has more or less of than the baseline's."""


def results_of(plan: Plan) -> list[RowResult]:
    """Return the results of all rows, as far as they are done; raise MucoError for a damaged file."""
    summaries = {cell.fingerprint: summary_of(cell) for cell in plan.cells()}
    differences = {
        id(row): _difference(plan, row, summaries) for row in plan.rows if row is not plan.baseline
    }
    compared = [key for key, difference in differences.items() if difference is not None]
    adjusted = dict(
        zip(compared, holm([d.p_value for d in differences.values() if d is not None]), strict=True)
    )
    budgets = {id(row): _budget(_done(row, summaries).values()) for row in plan.rows}
    baseline = budgets[id(plan.baseline)]
    return [
        RowResult(
            row=row,
            is_baseline=row is plan.baseline,
            seeds=tuple(_done(row, summaries)),
            scores=_scores(plan, row, summaries),
            budget=(budget := budgets[id(row)]),
            difference=differences.get(id(row)),
            adjusted_p=adjusted.get(id(row)),
            unequal=tuple(budget.differs(baseline)) if budget and baseline else (),
        )
        for row in plan.rows
    ]


def _done(row: Row, summaries: Mapping[str, Summary | None]) -> dict[int, Cell]:
    return {seed: cell for seed, cell in row.cells.items() if summaries[cell.fingerprint] is not None}


def _scores(plan: Plan, row: Row, summaries: Mapping[str, Summary | None]) -> dict[str, Scores]:
    columns: dict[str, list[float]] = {}
    for cell in _done(row, summaries).values():
        chain = cell.chain
        for stage, each in zip(plan.grid.stages or [""], chain, strict=True):
            summary = summaries[each.fingerprint]
            for metric in plan.metrics:
                if summary is not None and metric in summary.metrics:
                    column = metric if each is cell else f"{stage}: {metric}"
                    columns.setdefault(column, []).append(summary.metrics[metric])
    return {name: Scores(tuple(values)) for name, values in columns.items()}


def _budget(cells: Iterable[Cell]) -> Budget | None:
    """Return the mean over seeds of the sums over stages."""
    samples: list[float] = []
    flops: list[float | None] = []
    for cell in cells:
        runs = [run_files(each.folder) for each in cell.chain]
        samples.append(sum(run.summary.samples_seen for run in runs if run.summary))
        parts = [total_flops(run) for run in runs]
        flops.append(None if None in parts else sum(part for part in parts if part is not None))
    if not samples:
        return None
    known = [each for each in flops if each is not None]
    return Budget(float(np.mean(samples)), float(np.mean(known)) if len(known) == len(flops) else None)


@cache
def run_files(folder: Path) -> RunFiles:
    """Return the files of a run that is done; they are read once."""
    return read_run(folder)


def total_flops(run: RunFiles) -> float | None:
    """Return the model FLOPs of all steps that are logged; None where the log does not have them."""
    total, before = 0.0, 0
    for line in run.log:
        if line.model_flops is None:
            return None
        total += line.model_flops * (line.step - before)
        before = line.step
    return total or None


def _difference(plan: Plan, row: Row, summaries: Mapping[str, Summary | None]) -> Difference | None:
    """Compare a row with the baseline over the seeds that both have."""
    own, others = _done(row, summaries), _done(plan.baseline, summaries)
    seeds = [seed for seed in own if seed in others]
    if not seeds:
        return None
    mine, baseline = (_queries([cells[seed] for seed in seeds], plan.metrics[0]) for cells in (own, others))
    if not mine or mine.keys() != baseline.keys():
        return None
    differences = [mine[name] - baseline[name] for name in mine if mine[name].shape == baseline[name].shape]
    return compare(differences, draws=plan.grid.draws) if len(differences) == len(mine) else None


def _queries(cells: Sequence[Cell], metric: str) -> dict[tuple[str, str], Array]:
    """Return the scores of a metric's queries, a mean over cells, by task and hash of its queries."""
    label, _, name = metric.partition("/")
    scores: dict[tuple[str, str], list[Array]] = {}
    for cell in cells:
        suite = _suite(cell.folder, label)
        if suite is None:
            return {}
        file = queries_file(cell.folder / "eval", label)
        per_task = read_queries(file)
        for task in tasks_in(suite, name):
            if task not in per_task:
                raise MucoError(f"{file}: no query of {task}; run the evaluation again")
            scores.setdefault((task, suite.tasks[task].data), []).append(per_task[task].score)
    if any(len(each) != len(cells) for each in scores.values()):
        return {}
    return {key: np.mean(each, axis=0) for key, each in scores.items()}


def _suite(folder: Path, label: str) -> SuiteScores | None:
    return next((suite for suite in run_files(folder).suites if suite.suite == label), None)


def tasks_in(suite: SuiteScores, name: str) -> list[str]:
    """Return the tasks that a metric of the suite is the mean of."""
    if name in suite.tasks:
        return [name]
    return [
        task
        for task, score in suite.tasks.items()
        if name in score.groups or (score.in_mean and name in ("mean", f"meta_{score.meta_task}"))
    ]


def check_metrics(plan: Plan, results: Sequence[RowResult]) -> None:
    """Raise MucoError if a metric of the grid is in no run that is done."""
    done = [each for each in results if each.seeds]
    known = {column.rpartition(": ")[2] for each in done for column in each.scores}
    missing = [name for name in plan.metrics if done and name not in known]
    if missing:
        cell = next(iter(done[0].row.cells.values()))
        summary = run_files(cell.folder).summary
        names = ", ".join(summary.metrics) if summary else "none"
        raise MucoError(f"metrics: no run has {', '.join(missing)}. There are {names}")
