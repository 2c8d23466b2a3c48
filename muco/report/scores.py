"""The scores: headline averages, and each task's bar among those of its meta-task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

from muco.report.formatting import count, percent, short, title
from muco.report.records import Coherence, SuiteScores, TaskScore

META_TASKS = ("classification", "vqa", "retrieval", "grounding")


@dataclass(frozen=True)
class Level:
    """A score beside what guessing reaches, as percentages ready to print."""

    score: str
    chance: str | None
    times_chance: str | None
    width: str
    """The score held within 0 to 100, for drawing."""
    tick: str | None
    """The same of chance."""


@dataclass(frozen=True)
class Bar:
    """A task's score."""

    name: str
    level: Level
    error: str | None
    """One standard error of a share over so many queries."""
    tied: str | None
    num_queries: str
    num_candidates: str | None


@dataclass(frozen=True)
class Headline:
    """An average of a suite."""

    suite: str
    name: str
    level: Level
    num_tasks: int


@dataclass(frozen=True)
class Suite:
    """A suite's scores."""

    name: str
    metrics: str
    meta_tasks: tuple[tuple[str, tuple[Bar, ...]], ...]
    partial: tuple[tuple[str, str, str], ...]
    """Means that are no averages: name, score, `5 of 36`."""
    coherence: tuple[tuple[str, str], ...]
    """Label and value of what was measured."""
    warnings: tuple[str, ...]
    depends_on: dict[str, object]


def headlines_of(suites: Sequence[SuiteScores]) -> tuple[Headline, ...]:
    """Return every suite's averages, in the order of the files."""
    return tuple(
        Headline(suite.suite, name, _level(average.score, average.chance), average.num_tasks)
        for suite in suites
        for name, average in suite.averages.items()
    )


def suite_of(suite: SuiteScores) -> Suite:
    """Group a suite's tasks by meta-task: MMEB's four first, others after them by name."""
    known = {name: place for place, name in enumerate(META_TASKS)}
    names = {task.meta_task for task in suite.tasks.values()}
    groups = [
        (title(name), tuple(_bar(*item) for item in suite.tasks.items() if item[1].meta_task == name))
        for name in sorted(names, key=lambda name: (known.get(name, len(known)), name))
    ]
    return Suite(
        name=suite.suite,
        metrics=", ".join(sorted({task.metric for task in suite.tasks.values()})),
        meta_tasks=tuple(groups),
        partial=tuple(
            (name, percent(each.score), f"{each.num_tasks} of {each.of}")
            for name, each in suite.partial_averages.items()
        ),
        coherence=tuple(_coherence(suite.coherence)),
        warnings=suite.warnings,
        depends_on=suite.depends_on,
    )


def _coherence(found: Coherence) -> Iterator[tuple[str, str]]:
    labels = {
        "modality gap, 0 to 2": found.modality_gap,
        "alignment: query to answer, squared distance": found.alignment,
        "uniformity, lower is more even": found.uniformity,
        "agreement of the turns of one image, cosine": found.turn_agreement,
        "the same, of different images": found.turn_agreement_others,
    }
    yield from ((label, f"{value:.2f}") for label, value in labels.items() if value is not None)


def _bar(name: str, task: TaskScore) -> Bar:
    return Bar(
        name=name,
        level=_level(task.score, task.chance),
        error=_standard_error(task),
        tied=percent(task.tied_share) if task.tied_share >= 0.0005 else None,
        num_queries=count(task.num_queries),
        num_candidates=None if task.num_candidates is None else short(task.num_candidates),
    )


def _level(score: float, chance: float | None) -> Level:
    return Level(
        score=percent(score),
        chance=None if chance is None else percent(chance),
        times_chance=_times(score / chance) if chance else None,
        width=_held(score),
        tick=None if chance is None else _held(chance),
    )


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 100 else count(ratio)


def _held(share: float) -> str:
    return percent(min(max(share, 0.0), 1.0))


def _standard_error(task: TaskScore) -> str | None:
    if task.metric != "precision@1" or not 0 <= task.score <= 1 or task.num_queries < 2:
        return None
    return percent(sqrt(task.score * (1 - task.score) / (task.num_queries - 1)))
