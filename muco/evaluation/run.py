"""Running a suite: encode, search, score, and say what the result depends on."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muco.core.sample import Content
from muco.core.suite import Suite, Task
from muco.evaluation.encode import Encoder, Track
from muco.evaluation.metrics import Ties, mean, precision_at_1
from muco.evaluation.search import Ranking, rank_all

FORMAT_VERSION = 1
_NEAR_CHANCE = 1.5
"""A task that scores less than this many times chance is warned of."""

TrackTask = Callable[[str], Track]
"""Returns the tracker of one task's chunks."""


@dataclass(frozen=True)
class TaskScore:
    """One task's result."""

    meta_task: str
    metric: str
    score: float
    num_queries: int
    num_candidates: float
    """Of a query, on average."""
    chance: float
    """The score of a blind guess."""
    tied_share: float
    """Queries whose right answer shares the top score with a wrong one."""
    groups: tuple[str, ...]


@dataclass(frozen=True)
class SuiteResult:
    """A suite's result: task scores, their averages, and a gallery."""

    suite: str
    tasks: dict[str, TaskScore]
    averages: dict[str, dict[str, float]]
    warnings: list[str]
    gallery: list[dict[str, Any]]

    def metrics(self) -> dict[str, float]:
        """Return averages and tasks by name, `scenes/turns`."""
        named = {f"{self.suite}/{name}": each["score"] for name, each in self.averages.items()}
        return named | {f"{self.suite}/{name}": task.score for name, task in self.tasks.items()}


def run_suite(
    name: str,
    suite: Suite,
    encoder: Encoder,
    *,
    ties: Ties,
    gallery_queries: int,
    track: TrackTask,
) -> SuiteResult:
    """Encode and score every task of a suite."""
    scores: dict[str, TaskScore] = {}
    gallery: list[dict[str, Any]] = []
    for task in suite.tasks():
        contents = [*task.queries, *task.pool]
        vectors = encoder.encode(contents, track(task.name))
        rankings = rank_all(task, vectors[: len(task.queries)], vectors[len(task.queries) :])
        scores[task.name] = _score(task, rankings, ties)
        gallery.append(_gallery(task, rankings, gallery_queries))
    return SuiteResult(name, scores, _averages(scores), _warnings(scores), gallery)


def write_result(result: SuiteResult, folder: Path, depends_on: dict[str, Any]) -> None:
    """Write `<suite>.json` and `<suite>.gallery.json` to `folder`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {"format": FORMAT_VERSION, "suite": result.suite}
    tasks = {name: asdict(task) for name, task in result.tasks.items()}
    scores = {**head, "tasks": tasks, "averages": result.averages, "warnings": result.warnings}
    _write(folder / f"{result.suite}.gallery.json", {**head, "tasks": result.gallery})
    _write(folder / f"{result.suite}.json", {**scores, "depends_on": depends_on})


def _score(task: Task, rankings: Sequence[Ranking], ties: Ties) -> TaskScore:
    return TaskScore(
        meta_task=task.meta_task,
        metric=task.metric,
        score=mean([precision_at_1(ranking, ties) for ranking in rankings]),
        num_queries=len(rankings),
        num_candidates=mean([ranking.num_candidates for ranking in rankings]),
        chance=mean([ranking.chance for ranking in rankings]),
        tied_share=mean([float(ranking.above == 0 and ranking.tied > 0) for ranking in rankings]),
        groups=task.groups,
    )


def _averages(scores: dict[str, TaskScore]) -> dict[str, dict[str, float]]:
    """Return the unweighted means over tasks: of all, of each group, of each meta-task."""
    members: dict[str, list[TaskScore]] = {"mean": list(scores.values())}
    for score in scores.values():
        for group in (*score.groups, f"meta_{score.meta_task}"):
            members.setdefault(group, []).append(score)
    return {
        name: {
            "score": mean([task.score for task in tasks]),
            "chance": mean([task.chance for task in tasks]),
            "num_tasks": len(tasks),
        }
        for name, tasks in members.items()
    }


def _warnings(scores: dict[str, TaskScore]) -> list[str]:
    return [
        f"{name} scores {task.score:.3f}, at or near its chance level of {task.chance:.3f}"
        for name, task in scores.items()
        if task.score < _NEAR_CHANCE * task.chance
    ]


def _gallery(task: Task, rankings: Sequence[Ranking], num_queries: int) -> dict[str, Any]:
    """Return the first queries with their best candidates, whatever their outcome."""
    shown = []
    for row, ranking in enumerate(rankings[:num_queries]):
        right = set(task.relevant[row])
        top = [
            {**_shown(task.pool[place]), "score": score, "right": place in right}
            for place, score in ranking.top
        ]
        shown.append({**_shown(task.queries[row]), "rank": ranking.rank, "top": top})
    return {"task": task.name, "queries": shown}


def _shown(content: Content) -> dict[str, Any]:
    return {"text": content.text, "images": [_data_uri(image.data) for image in content.images]}


def _data_uri(data: bytes) -> str:
    kinds: Iterable[tuple[bytes, str]] = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"RIFF", "webp"))
    kind = next((kind for magic, kind in kinds if data.startswith(magic)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _write(path: Path, values: dict[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)
