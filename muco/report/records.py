"""What the report reads in a run folder, field by field; unknown fields are left alone."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Named(_Record):
    name: str


class _Train(_Record):
    num_steps: int | None = None


class _Evaluate(_Record):
    suites: tuple[_Named, ...] = ()


class RecipeOutline(_Record):
    """The names in recipe.yaml; the plugins behind them need not be installed here."""

    name: str
    data: dict[str, Any] = {}
    packer: _Named | None = None
    backbone: _Named | None = None
    pooler: _Named | None = None
    loss: _Named | None = None
    train: _Train = _Train()
    evaluate: _Evaluate = _Evaluate()


class LoggedStep(_Record):
    """A line of train.jsonl; a number that is not finite is kept, for the page to say so."""

    step: int
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    in_batch_accuracy: float | None = None
    pairs_per_second: float | None = None
    samples_per_second: float | None = None
    tokens: float | None = None
    padding_share: float | None = None
    wait_share: float | None = None
    counts: dict[str, FiniteFloat] = {}


class Summary(_Record):
    """summary.json, which a finished run has."""

    steps: int | None = None
    pairs_seen: int | None = None
    samples_seen: int | None = None
    train_seconds: FiniteFloat | None = None
    wall_seconds: FiniteFloat | None = None


class TaskScore(_Record):
    """One task of an eval file."""

    meta_task: str
    metric: str
    score: FiniteFloat
    num_queries: int
    num_candidates: FiniteFloat | None = None
    chance: FiniteFloat | None = None
    tied_share: FiniteFloat = 0.0
    more: dict[str, FiniteFloat] = {}
    data: str | None = None


class Average(_Record):
    """The mean score of several tasks."""

    score: FiniteFloat
    chance: FiniteFloat | None = None
    num_tasks: int


class PartialAverage(Average):
    """A mean over fewer tasks than the average claims."""

    of: int


class Coherence(_Record):
    """How coherent a suite's embeddings are."""

    modality_gap: FiniteFloat | None = None
    alignment: FiniteFloat | None = None
    uniformity: FiniteFloat | None = None
    turn_agreement: FiniteFloat | None = None
    turn_agreement_others: FiniteFloat | None = None


class Published(_Record):
    """Scores that a paper prints."""

    suite: str
    model: str
    values: dict[str, FiniteFloat]


class SuiteScores(_Record):
    """eval/<suite>.json."""

    format: Literal[1]
    suite: str
    tasks: dict[str, TaskScore]
    averages: dict[str, Average] = {}
    partial_averages: dict[str, PartialAverage] = {}
    coherence: Coherence = Coherence()
    warnings: tuple[str, ...] = ()
    depends_on: dict[str, Any] = {}


class Shown(_Record):
    """A query or a candidate: text, images as data URIs that nobody has checked yet, or both."""

    text: str = ""
    images: tuple[str, ...] = ()


class Found(Shown):
    """A retrieved candidate."""

    score: FiniteFloat
    right: bool


class ShownQuery(Shown):
    """A query with what it retrieved, best first."""

    rank: int
    """Of the first right candidate, counted from 1."""
    top: tuple[Found, ...]


class ShownTask(_Record):
    """The queries of one task that the gallery shows."""

    task: str
    queries: tuple[ShownQuery, ...]


class SuiteGallery(_Record):
    """eval/<suite>.gallery.json."""

    format: Literal[1]
    suite: str
    tasks: tuple[ShownTask, ...]


class Unreadable(_Record):
    """A line of unreadable.jsonl: a sample that training left out."""

    sample: str
    reason: str
