"""Validation while training: score suites with the weights of a step, and leave training as it was."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from muco.config.recipe import Recipe
from muco.console import Terminal
from muco.core.encoder import TurnEncoder
from muco.core.errors import MucoError, did_you_mean
from muco.core.packer import Packer
from muco.core.suite import Suite, Task
from muco.distributed.ranks import Ranks
from muco.evaluation.score import open_embedder
from muco.evaluation.suite import NamedSuite, metric_names, run_suite
from muco.io.atomic import remove_folder
from muco.io.lazy import LazyContents
from muco.model.folder import LoadedModel
from muco.training.log import LoggedValidation

_VECTORS = ".validation"
"""The folder of a validation's embeddings, in the run folder; removed after it."""


@dataclass(frozen=True)
class Validator:
    """Scores the suites of a recipe that its `train` names, with the settings of its `evaluate`."""

    recipe: Recipe
    suites: Sequence[NamedSuite]
    """Their tasks are in memory."""
    packer: Packer
    run_folder: Path
    ranks: Ranks

    @classmethod
    def of(cls, recipe: Recipe, suites: Sequence[NamedSuite], run_folder: Path, ranks: Ranks) -> Validator:
        """Read the tasks of the suites that are validated; their images are read when they are used.

        Raise MucoError if no task or average has the name of a metric that `train` watches, DataError if a
        file of a suite is missing or broken.
        """
        train = recipe.train
        chosen = [each for each in suites if each.name in (train.validate_suites or (each.name,))]
        held = [replace(each, suite=HeldSuite(each.suite, train.validate_queries)) for each in chosen]
        known = [name for each in held for name in metric_names(each.name, each.suite)]
        for key, metric in train.watched_metrics.items():
            if metric not in known:
                raise MucoError(
                    f"{key}: no validated suite gives {metric!r}.{did_you_mean(metric, known)} "
                    f"They give: {', '.join(known)}"
                )
        return cls(recipe, held, recipe.packer.make(), run_folder, ranks)

    def validate(self, encoder: TurnEncoder, step: int) -> LoggedValidation | None:
        """Score `encoder`, which all processes hold with its full weights; None but in the main process."""
        began = time.perf_counter()
        settings = self.recipe.evaluate
        model = LoadedModel(self.recipe.model, self.packer, encoder, weights=f"step {step}", step=step)
        averages, tasks = dict[str, float](), dict[str, float]()
        opened = open_embedder(model, settings, self.run_folder / _VECTORS, Terminal(quiet=True), self.ranks)
        with unchanged(encoder), self._vectors_removed(), opened as (embedder, _):
            for each in self.suites:
                results = run_suite(
                    each.name, each.suite, embedder,
                    ties=settings.ties, gallery_queries=0, depends_on={},
                )  # fmt: skip
                if results is not None:
                    scores = results[0]
                    tasks |= {f"{each.name}/{name}": task.score for name, task in scores.tasks.items()}
                    averages |= {name: value for name, value in scores.metrics().items() if name not in tasks}
        if not self.ranks.is_main:
            return None
        return LoggedValidation(step, round(time.perf_counter() - began, 2), averages, tasks)

    @contextmanager
    def _vectors_removed(self) -> Generator[None]:
        """Remove the folder of embeddings before the block, where a killed run left it, and after it."""
        for is_after in (False, True):
            self.ranks.wait()
            if self.ranks.is_main:
                remove_folder(self.run_folder / _VECTORS)
            self.ranks.wait()
            if not is_after:
                yield


class HeldSuite(Suite):
    """The tasks of a suite in memory, each with at most `num_queries` of its queries, evenly spaced."""

    def __init__(self, suite: Suite, num_queries: int | None) -> None:
        self._tasks = [with_fewer_queries(task, num_queries) for task in suite.tasks()]
        self._members = suite.members()

    def tasks(self) -> Iterable[Task]:
        """Return the same tasks at each call."""
        return self._tasks

    def members(self) -> Mapping[str, int]:
        """Return what the suite returned."""
        return self._members


def with_fewer_queries(task: Task, num_queries: int | None) -> Task:
    """Return a task with at most `num_queries` of the queries, evenly spaced, and the candidates they need.

    A query keeps its candidates, so its score does not change. None: the task itself.
    """
    size = len(task.queries)
    if num_queries is None or num_queries >= size:
        return task
    rows = [size * row // num_queries for row in range(num_queries)]
    queries = LazyContents(lambda row: task.queries[rows[row]], range(num_queries))
    relevant = [task.relevant[row] for row in rows]
    if task.candidates is None:
        return replace(task, queries=queries, relevant=relevant)
    candidates = [task.candidates[row] for row in rows]
    needed = sorted({index for own in candidates for index in own})
    position = {index: new for new, index in enumerate(needed)}
    return replace(
        task,
        queries=queries,
        pool=LazyContents(lambda row: task.pool[needed[row]], range(len(needed))),
        candidates=[[position[index] for index in own] for own in candidates],
        relevant=[[position[index] for index in own] for own in relevant],
    )


@contextmanager
def unchanged(module: nn.Module) -> Generator[None]:
    """Restore, after the block, the modes of a module's parts and the states of all random generators."""
    modes = [(part, part.training) for part in module.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():  # of the CPU and of all GPUs
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for part, mode in modes:
            part.training = mode
