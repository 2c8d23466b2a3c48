"""The scores of a suite's tasks, by meta-task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from muco.evaluation.results import SuiteScores, TaskScore
from muco.report.formatting import percent, title

META_TASKS = ("classification", "vqa", "retrieval", "grounding")
"""MMEB's, in the order of its tables."""
_MEASURES = {
    "modality_gap": "modality gap, 0 to 2",
    "alignment": "alignment: query to answer, squared distance",
    "uniformity": "uniformity, lower is more even",
    "turn_agreement": "agreement of the turns of one image, cosine",
    "turn_agreement_others": "the same, of different images",
}
"""Label of each measure of `Coherence`."""


@dataclass(frozen=True)
class Suite:
    """The scores of a suite, as the page lays them out."""

    scores: SuiteScores
    metrics: str
    meta_tasks: Sequence[tuple[str, Sequence[tuple[str, TaskScore]]]]
    """Title, and the tasks by name."""
    coherence: Sequence[tuple[str, float]]
    """Label and value of what was measured."""


def suite_of(scores: SuiteScores) -> Suite:
    """Group a suite's tasks by meta-task: MMEB's four first, others after them by name."""
    groups: dict[str, list[tuple[str, TaskScore]]] = {}
    for name, task in scores.tasks.items():
        groups.setdefault(task.meta_task, []).append((name, task))
    first = [name for name in META_TASKS if name in groups]
    others = sorted(groups.keys() - set(first))
    return Suite(
        scores=scores,
        metrics=", ".join(sorted({task.metric for task in scores.tasks.values()})),
        meta_tasks=[(title(name), groups[name]) for name in (*first, *others)],
        coherence=[
            (label, value)
            for name, label in _MEASURES.items()
            if (value := getattr(scores.coherence, name)) is not None
        ],
    )


def standard_error(task: TaskScore) -> str | None:
    """Return one standard error over the queries; None where the score is not a share of them."""
    if task.metric != "precision@1" or not 0 <= task.score <= 1 or task.num_queries < 2:
        return None
    return percent(sqrt(task.score * (1 - task.score) / (task.num_queries - 1)))
