"""The files of an evaluation, `eval/<suite>.json` and `eval/<suite>.gallery.json`, field by field.

Written by the evaluation and read by the report. This module does not import torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import FiniteFloat

from muco.io.atomic import write_errors, write_text


@dataclass(frozen=True)
class TaskScore:
    """The result of one task."""

    meta_task: str
    metric: str
    score: FiniteFloat
    num_queries: int
    num_candidates: FiniteFloat
    """Of a query, on average."""
    chance: FiniteFloat
    """The score of a random order of the candidates."""
    tied_share: FiniteFloat
    """Share of queries whose right answer shares the top score with a wrong one."""
    groups: tuple[str, ...]
    more: dict[str, FiniteFloat]
    """Other metrics, by name."""
    in_mean: bool
    data: str
    """A hash of queries, candidates and right answers: equal hash, same task."""
    notes: tuple[str, ...] = ()
    """How the contents were made."""


@dataclass(frozen=True)
class Average:
    """The unweighted mean over tasks."""

    score: FiniteFloat
    chance: FiniteFloat
    num_tasks: int


@dataclass(frozen=True)
class PartialAverage(Average):
    """A mean over fewer tasks than the average of this name has."""

    of: int

    @property
    def share(self) -> str:
        """How many of the tasks were scored: `5 of 36`."""
        return f"{self.num_tasks} of {self.of}"


@dataclass(frozen=True)
class Coherence:
    """Measures of a suite's embeddings; None if there is nothing to measure."""

    modality_gap: FiniteFloat | None
    """The distance between the mean of contents without an image and the mean of those with one, 0 to 2;
    Liang et al. 2022, arXiv:2203.02053."""
    alignment: FiniteFloat
    """The mean squared distance of a query and its right answer, 0 to 4, a mean over tasks; Wang and
    Isola 2020, arXiv:2005.10242."""
    uniformity: FiniteFloat
    """The log of the mean of exp(-2 d^2) over pairs of different contents at distance d. Lower is more
    even; the least in many dimensions is -4. Same source."""
    turn_agreement: FiniteFloat | None = None
    """The mean cosine of different queries about one image."""
    turn_agreement_others: FiniteFloat | None = None
    """The same for queries about different images, to compare with."""


@dataclass(frozen=True)
class SuiteScores:
    """eval/<suite>.json."""

    format: Literal[1]
    suite: str
    tasks: dict[str, TaskScore]
    averages: dict[str, Average]
    partial_averages: dict[str, PartialAverage]
    """Means over fewer tasks than the average has; the average itself is left out."""
    coherence: Coherence
    warnings: tuple[str, ...]
    depends_on: dict[str, Any]
    """All that decides the scores: weights, step, settings, versions."""

    def metrics(self) -> dict[str, float]:
        """Return averages and tasks by name, `scenes/turns`; a partial one is `mmeb/mean (5 of 36)`."""
        averages = {name: each.score for name, each in self.averages.items()}
        partial = {f"{name} ({each.share})": each.score for name, each in self.partial_averages.items()}
        tasks = {name: task.score for name, task in self.tasks.items()}
        return {f"{self.suite}/{name}": score for name, score in (averages | partial | tasks).items()}


@dataclass(frozen=True)
class ShownContent:
    """A query or a candidate of the gallery."""

    text: str
    images: tuple[str, ...]
    """Data URIs. The report checks them before it shows them."""


@dataclass(frozen=True)
class Retrieved(ShownContent):
    """A retrieved candidate."""

    score: FiniteFloat
    right: bool


@dataclass(frozen=True)
class GalleryQuery(ShownContent):
    """A query with the candidates that it retrieved."""

    rank: int
    """Of the first right candidate, from 1."""
    top: tuple[Retrieved, ...]
    """The best first."""

    @property
    def is_miss(self) -> bool:
        """Whether the first candidate is wrong."""
        return self.rank > 1


@dataclass(frozen=True)
class GalleryTask:
    """The queries of one task that the gallery shows."""

    task: str
    queries: tuple[GalleryQuery, ...]


@dataclass(frozen=True)
class Gallery:
    """eval/<suite>.gallery.json."""

    format: Literal[1]
    suite: str
    tasks: tuple[GalleryTask, ...]


def write_results(folder: Path, scores: SuiteScores, gallery: Gallery) -> None:
    """Write `<suite>.json` and `<suite>.gallery.json` to `folder`, each whole or not at all."""
    for name, record in ((f"{gallery.suite}.gallery.json", gallery), (f"{scores.suite}.json", scores)):
        with write_errors(f"{folder / name}: the result"):
            write_text(folder / name, json.dumps(asdict(record), indent=1) + "\n", inside=folder.parent)
