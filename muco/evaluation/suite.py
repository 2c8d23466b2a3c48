"""The suites of a recipe: which data is missing; encode, rank the candidates, score the tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np

from muco.config.recipe import EvaluateSettings
from muco.core.errors import DataError, MucoError
from muco.core.suite import Suite, Task
from muco.evaluation import metrics
from muco.evaluation.encode import CachedEmbedder, Embedded, Track
from muco.evaluation.gallery import gallery_task
from muco.evaluation.geometry import CoherenceMeter
from muco.evaluation.metrics import Ties, mean
from muco.evaluation.queries import QueryScores
from muco.evaluation.results import Average, Gallery, GalleryTask, PartialAverage, SuiteScores, TaskScore
from muco.evaluation.search.ranking import Ranking
from muco.evaluation.search.search import rank_all

T = TypeVar("T", Task, TaskScore)


@dataclass(frozen=True)
class NamedSuite:
    """A suite to run."""

    name: str
    settings: dict[str, Any]
    """The mapping of the recipe, defaults filled in."""
    suite: Suite


def make_suites(settings: EvaluateSettings) -> list[NamedSuite]:
    """Return the suites of a recipe."""
    return [NamedSuite(ref.label, ref.dump(), ref.make()) for ref in settings.suites]


def missing_suites(suites: Sequence[NamedSuite]) -> dict[str, str]:
    """Return, by key of the recipe, which suites' data is missing and how to get it."""
    missing: dict[str, str] = {}
    for index, each in enumerate(suites):
        try:
            each.suite.verify_data()
        except DataError as error:
            missing[f"evaluate.suites.{index}"] = f"{each.name}: {error}"
    return missing


TrackTask = Callable[[str], Track]
"""Returns the progress bar of one task's windows."""


def run_suite(
    name: str,
    suite: Suite,
    embedder: CachedEmbedder,
    *,
    ties: Ties,
    gallery_queries: int,
    depends_on: Mapping[str, Any],
    track: TrackTask = lambda _task: lambda windows, _number: windows,
    scored: Callable[[str, TaskScore], None] = lambda _name, _score: None,
) -> tuple[SuiteScores, Gallery, dict[str, QueryScores]] | None:
    """Encode and score a suite's tasks; return scores, gallery and the queries of each task.

    Return None except in the main process. `name` names the results; see `metrics.score` for `ties`; the
    gallery has `gallery_queries` of a task; `depends_on`, what decides the scores, is written beside them;
    `scored` is called with the result of each task.
    """
    scores: dict[str, TaskScore] = {}
    gallery: list[GalleryTask] = []
    per_query: dict[str, QueryScores] = {}
    warnings: list[str] = []
    meter = CoherenceMeter()
    task = None
    for task in suite.tasks():
        warnings += task.warnings
        queries = embedder.encode(task.queries, track(f"{task.name}: queries"))
        pool = embedder.encode(task.pool, track(f"{task.name}: candidates"))
        embedder.forget(task.queries)
        if embedder.is_main:
            rankings = rank_all(
                task,
                queries.vectors,
                pool.vectors,
                num_top=5,
                top_queries=gallery_queries,
                device=embedder.device,
            )
            per_query[task.name] = _query_scores(task, rankings, ties)
            scores[task.name] = _score(
                task, rankings, per_query[task.name], ties, _data_hash(task, queries, pool)
            )
            scored(task.name, scores[task.name])
            gallery.append(gallery_task(task, rankings[:gallery_queries]))
            meter.add(queries, pool, rankings)
    if task is None:
        raise MucoError(f"suite {name} has no task. Look at its settings and its data")
    turns = [content for each in suite.turns() for content in each]
    if turns:
        meter.add_turns(embedder.encode(turns, track("turns of one image")))
    if not embedder.is_main:
        return None
    averages, partial = _averages(scores, suite.members())
    result = SuiteScores(
        format=1,
        suite=name,
        tasks=scores,
        averages=averages,
        partial_averages=partial,
        coherence=meter.result(),
        warnings=(*_warnings(scores, partial), *warnings),
        depends_on=dict(depends_on),
    )
    return result, Gallery(1, name, tuple(gallery)), per_query


def _data_hash(task: Task, queries: Embedded, pool: Embedded) -> str:
    digest = blake2b(digest_size=8)
    for ids in (queries.content_ids, pool.content_ids, *(task.candidates or ()), *task.relevant):
        column = np.asarray(ids, dtype=np.int64)
        digest.update(len(column).to_bytes(8, "little"))
        digest.update(column.tobytes())
    return digest.hexdigest()


def _query_scores(task: Task, rankings: Sequence[Ranking], ties: Ties) -> QueryScores:
    return QueryScores(
        np.array([ranking.rank for ranking in rankings]),
        np.array([metrics.score(ranking, task.metric, ties) for ranking in rankings], dtype=np.float64),
    )


def _score(task: Task, rankings: Sequence[Ranking], queries: QueryScores, ties: Ties, data: str) -> TaskScore:
    def over(metric: str) -> float:
        return mean([metrics.score(ranking, metric, ties) for ranking in rankings])

    return TaskScore(
        meta_task=task.meta_task,
        metric=task.metric,
        score=mean(queries.score.tolist()),
        num_queries=len(rankings),
        num_candidates=mean([ranking.num_candidates for ranking in rankings]),
        chance=mean([metrics.chance(ranking, task.metric) for ranking in rankings]),
        tied_share=mean([float(ranking.is_tied) for ranking in rankings]),
        groups=task.groups,
        more={metric: over(metric) for metric in task.more_metrics},
        in_mean=task.in_mean,
        data=data,
        notes=task.notes,
    )


def metric_names(label: str, suite: Suite) -> list[str]:
    """Return the names of a suite's averages and tasks, as `SuiteScores.metrics` has them, without scores."""
    tasks = {task.name: task for task in suite.tasks()}
    members, expected = _members(tasks), suite.members()
    averages = [
        f"{name} ({len(own)} of {expected[name]})" if len(own) < expected.get(name, 0) else name
        for name, own in members.items()
    ]
    return [f"{label}/{name}" for name in (*averages, *tasks)]


def _members(tasks: Mapping[str, T]) -> dict[str, list[T]]:
    """Return the tasks of each average that has some: all, those of a meta-task, those of a group."""
    members: dict[str, list[T]] = {"mean": []}
    for task in tasks.values():
        own = ("mean", f"meta_{task.meta_task}") if task.in_mean else ()
        for group in (*own, *task.groups):
            members.setdefault(group, []).append(task)
    return {name: own for name, own in members.items() if own}


def _averages(
    scores: Mapping[str, TaskScore], num_members: Mapping[str, int]
) -> tuple[dict[str, Average], dict[str, PartialAverage]]:
    """Return the means over all tasks, meta-tasks and groups; partial below `num_members` tasks."""
    averages: dict[str, Average] = {}
    partial: dict[str, PartialAverage] = {}
    for name, tasks in _members(scores).items():
        values = mean([task.score for task in tasks]), mean([task.chance for task in tasks]), len(tasks)
        if len(tasks) < num_members.get(name, 0):
            partial[name] = PartialAverage(*values, num_members[name])
        else:
            averages[name] = Average(*values)
    return averages, partial


def _warnings(scores: Mapping[str, TaskScore], partial: Mapping[str, PartialAverage]) -> list[str]:
    warnings = [
        f"{name} scores {task.score:.3f}, at or near its chance level of {task.chance:.3f}"
        for name, task in scores.items()
        if _is_near_chance(task)
    ]
    if "mean" in partial:
        warnings.append(
            f"{partial['mean'].share} data sets were scored: their mean is not the suite's average"
        )
    return warnings


def _is_near_chance(task: TaskScore) -> bool:
    """Return whether a task scores less than 1.5 times chance, or little more than a chance that is high.

    With one candidate the chance is 1, and every score is at chance.
    """
    return task.score - task.chance <= 0.5 * task.chance * (1 - task.chance)
