"""Running a suite: encode, search, score, and say what the result depends on."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from muco.core.errors import MucoError
from muco.core.image import EncodedImage
from muco.core.sample import Content
from muco.core.suite import Suite, Task
from muco.core.video import Video
from muco.evaluation import metrics
from muco.evaluation.encode import CachedEmbedder, Embedded, Track
from muco.evaluation.geometry import Coherence, CoherenceMeter
from muco.evaluation.metrics import Ties, mean
from muco.evaluation.search.ranking import Ranking
from muco.evaluation.search.search import rank_all
from muco.io.atomic import write_text

FORMAT_VERSION = 1
_MOST_SHOWN_BYTES, _SHOWN_PIXELS = 20_000, 256
"""Of an image of the gallery."""

TrackTask = Callable[[str], Track]
"""Returns the tracker of one task's windows."""


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
    more: dict[str, float]
    """Other metrics, by name."""
    in_mean: bool
    data: str
    """A hash of queries, candidates and right answers: equal hash, same task."""


@dataclass(frozen=True)
class SuiteResult:
    """A suite's result: task scores, their averages, how coherent the embeddings are, and a gallery."""

    suite: str
    tasks: dict[str, TaskScore]
    averages: dict[str, dict[str, float]]
    """Unweighted means over all the tasks that an average claims."""
    partial_averages: dict[str, dict[str, float]]
    """Means over fewer tasks, `num_tasks` of `of`: never the average itself."""
    coherence: Coherence
    warnings: list[str]
    gallery: list[dict[str, Any]]

    def metrics(self) -> dict[str, float]:
        """Return averages and tasks by name, `scenes/turns`; a partial one is `mmeb/mean (5 of 36)`."""
        named = {f"{self.suite}/{name}": each["score"] for name, each in self.averages.items()}
        for name, each in self.partial_averages.items():
            named[f"{self.suite}/{name} ({each['num_tasks']} of {each['of']})"] = each["score"]
        return named | {f"{self.suite}/{name}": task.score for name, task in self.tasks.items()}


def run_suite(
    name: str,
    suite: Suite,
    encoder: CachedEmbedder,
    *,
    ties: Ties,
    gallery_queries: int,
    track: TrackTask,
) -> SuiteResult | None:
    """Encode and score every task of a suite; None in a process that only helps to encode.

    Raises:
        MucoError: the suite's data is missing or broken, or a vector is not finite.
    """
    scores: dict[str, TaskScore] = {}
    gallery: list[dict[str, Any]] = []
    meter = CoherenceMeter()
    for task in suite.tasks():
        queries = encoder.encode(task.queries, track(f"{task.name}: queries"))
        pool = encoder.encode(task.pool, track(f"{task.name}: candidates"))
        encoder.forget(task.queries)
        if encoder.is_main:
            rankings = rank_all(
                task,
                queries.vectors,
                pool.vectors,
                num_top=5,
                top_queries=gallery_queries,
                device=encoder.device,
            )
            data = _data_hash(task, queries, pool)
            scores[task.name] = _score(task, rankings, ties, data)
            gallery.append(_gallery(task, rankings[:gallery_queries]))
            meter.add(queries, pool, rankings)
    turns = [content for each in suite.turns() for content in each]
    if turns:
        meter.add_turns(encoder.encode(turns, track("turns of one image")))
    if not encoder.is_main:
        return None
    whole, partial = _averages(scores, suite.members())
    return SuiteResult(name, scores, whole, partial, meter.result(), _warnings(scores, partial), gallery)


def write_result(result: SuiteResult, folder: Path, depends_on: dict[str, Any]) -> None:
    """Write `<suite>.json` and `<suite>.gallery.json` to `folder`, each whole or not at all.

    Raises:
        MucoError: the disk does not take them.
    """
    head = {"format": FORMAT_VERSION, "suite": result.suite}
    scores = {
        **head,
        "tasks": {name: asdict(task) for name, task in result.tasks.items()},
        "averages": result.averages,
        "partial_averages": result.partial_averages,
        "coherence": asdict(result.coherence),
        "warnings": result.warnings,
    }
    _write(folder / f"{result.suite}.gallery.json", {**head, "tasks": result.gallery})
    _write(folder / f"{result.suite}.json", {**scores, "depends_on": depends_on})


def _data_hash(task: Task, queries: Embedded, pool: Embedded) -> str:
    digest = blake2b(digest_size=8)
    for ids in (queries.content_ids, pool.content_ids, *(task.candidates or ()), *task.relevant):
        column = np.asarray(ids, dtype=np.int64)
        digest.update(len(column).to_bytes(8, "little"))
        digest.update(column.tobytes())
    return digest.hexdigest()


def _score(task: Task, rankings: Sequence[Ranking], ties: Ties, data: str) -> TaskScore:
    def over(metric: str) -> float:
        return mean([metrics.score(ranking, metric, ties) for ranking in rankings])

    return TaskScore(
        meta_task=task.meta_task,
        metric=task.metric,
        score=over(task.metric),
        num_queries=len(rankings),
        num_candidates=mean([ranking.num_candidates for ranking in rankings]),
        chance=mean([metrics.chance(ranking, task.metric) for ranking in rankings]),
        tied_share=mean([float(ranking.is_tied) for ranking in rankings]),
        groups=task.groups,
        more={metric: over(metric) for metric in task.more_metrics},
        in_mean=task.in_mean,
        data=data,
    )


def _averages(
    scores: Mapping[str, TaskScore], claimed: Mapping[str, int]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return the unweighted means over tasks: of all, of each group, of each meta-task; whole and partial."""
    members: dict[str, list[TaskScore]] = {"mean": []}
    for score in scores.values():
        own = ("mean", f"meta_{score.meta_task}") if score.in_mean else ()
        for group in (*own, *score.groups):
            members.setdefault(group, []).append(score)
    whole: dict[str, dict[str, float]] = {}
    partial: dict[str, dict[str, float]] = {}
    for name, tasks in members.items():
        if not tasks:
            continue
        found: dict[str, float] = {
            "score": mean([task.score for task in tasks]),
            "chance": mean([task.chance for task in tasks]),
            "num_tasks": len(tasks),
        }
        if len(tasks) < claimed.get(name, 0):
            partial[name] = {**found, "of": claimed[name]}
        else:
            whole[name] = found
    return whole, partial


def _warnings(scores: Mapping[str, TaskScore], partial: Mapping[str, Mapping[str, float]]) -> list[str]:
    told = [
        f"{name} scores {task.score:.3f}, at or near its chance level of {task.chance:.3f}"
        for name, task in scores.items()
        if _is_near_chance(task)
    ]
    if "mean" in partial:
        told.append(
            f"{partial['mean']['num_tasks']} of {partial['mean']['of']} data sets were scored: "
            "their mean is not the suite's average"
        )
    return told


def _is_near_chance(task: TaskScore) -> bool:
    """Say whether a task scores less than 1.5 times chance, or hardly more than a chance that is high.

    Where chance is certain, as with one candidate, any score is at it.
    """
    return task.score - task.chance <= 0.5 * task.chance * (1 - task.chance)


def _gallery(task: Task, rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Return the first queries with their best candidates, whatever their outcome."""
    shown: list[dict[str, Any]] = []
    for row, ranking in enumerate(rankings):
        right = set(task.relevant[row])
        top = [
            {**_shown(task.pool[place]), "score": score, "right": place in right}
            for place, score in ranking.top
        ]
        shown.append({**_shown(task.queries[row]), "rank": ranking.rank, "top": top})
    return {"task": task.name, "queries": shown}


def _shown(content: Content) -> dict[str, Any]:
    return {"text": content.text, "images": [_data_uri(image) for image in _pictures(content)]}


def _pictures(content: Content) -> Iterator[EncodedImage]:
    """Yield the images as they are, and the first frame of each video."""
    for visual in content.images:
        yield visual.frames[0] if isinstance(visual, Video) else visual


def _data_uri(image: EncodedImage) -> str:
    """Return the image itself where it is small, else one of a few hundred pixels a side."""
    data = image.data
    if len(data) > _MOST_SHOWN_BYTES:
        small = image.decode()
        small.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80)
        data = buffer.getvalue()
    kinds: Iterable[tuple[bytes, str]] = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"RIFF", "webp"))
    kind = next((kind for magic, kind in kinds if data.startswith(magic)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _write(path: Path, values: dict[str, Any]) -> None:
    try:
        write_text(path, json.dumps(values, indent=1) + "\n", inside=path.parent.parent)
    except OSError as error:
        raise MucoError(f"{path}: the result cannot be written: {error}") from error
