"""Retrieval tasks about scenes that are held out from training."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from math import comb
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from muco.core.component import Feature
from muco.core.errors import MucoError
from muco.core.sample import Content
from muco.core.suite import Suite, Task
from muco.plugins.datasets.names import Names, known
from muco.plugins.datasets.scenes.drawing import draw_image
from muco.plugins.datasets.scenes.questions import QUESTIONS
from muco.plugins.datasets.scenes.tasks import PAIR_TASKS, TURN_TASKS, Problem, View, near_views
from muco.plugins.datasets.scenes.world import SIZES, SceneWorld, draw_scene, seeded

_TURN_PICTURES = 32
"""Pictures by which `turns` measures how similar the turns of an image are."""
_WORLD = {"shapes", "colors", "backgrounds", "cells_per_side", "num_objects", "tasks"}
"""The valid settings that the check of `num_candidates` needs."""
TASKS = TURN_TASKS | PAIR_TASKS


class ScenesSuite(Suite):
    """Ask about held-out scenes; each query is searched among a few candidates of its own.

    There is a task for each kind of pair that the `scenes` source draws. Queries and right answers show
    held-out arrangements of objects, which no training sample shows, on any background.

    The first candidate of a query is right, all others are wrong. About half of these nearly fit: another
    object of the picture, the picture before the edit, one attribute changed, one attribute exchanged
    between two objects; they may be of any split. The others are right answers to other problems of the
    task. All are worded and drawn alike.
    """

    class Config(SceneWorld):
        tasks: Annotated[Names, known("task", TASKS)] = tuple(TASKS)
        """The tasks to run."""
        num_queries: PositiveInt = 256
        """Queries of each task."""
        num_candidates: Annotated[int, Field(ge=10, validate_default=True)] = 10
        """Candidates of each query; a random guess is right in one of so many."""
        seed: NonNegativeInt = 0
        """Another seed gives other queries."""

        @field_validator("num_candidates")
        @classmethod
        def _answers_suffice(cls, num_candidates: int, info: ValidationInfo) -> int:
            if _WORLD - info.data.keys():
                return num_candidates
            for task, num_answers in _few_answers(info.data).items():
                if task in info.data["tasks"] and num_answers < num_candidates:
                    raise ValueError(
                        f"{num_candidates} candidates, but in this world {task} has {num_answers} "
                        "different answers. Lower `num_candidates`; change `shapes`, `colors` or "
                        f"`num_objects`; or list `tasks` without {task}"
                    )
            return num_candidates

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"image_targets"} if any(TASKS[name].image for name in config.tasks) else ())

    def __init__(self, config: Config) -> None:
        self.config = config

    def tasks(self) -> Iterable[Task]:
        for name in self.config.tasks:
            yield _TaskBuilder(name, self.config).build()

    def turns(self) -> Iterable[Sequence[Content]]:
        """Yield the seven questions about each of some held-out pictures."""
        for index in range(_TURN_PICTURES):
            rng = seeded("turns", self.config.seed, index)
            scene = draw_scene(self.config, rng, "held_out")
            images = (draw_image(scene, self.config.image_size_pixels),)
            subject = rng.randrange(len(scene.objects))
            yield [Content(question.queries(scene, subject)[0], images) for question in QUESTIONS]


class _TaskBuilder:
    """Builds one task; problems and contents are made on first use."""

    def __init__(self, name: str, config: ScenesSuite.Config) -> None:
        self.name = name
        self.config = config
        self.task = TASKS[name]
        self.pool: list[Content] = []
        self._problem = cache(self._pose)
        self._index = cache(self._add_to_pool)
        self._index_by_id: dict[int, int] = {}

    def build(self) -> Task:
        queries, candidates = [], []
        for index in range(self.config.num_queries):
            rng = seeded("candidates", self.name, self.config.seed, index)
            problem = self._problem(index)
            queries.append(Content(rng.choice(problem.queries), problem.images(self.config)))
            candidates.append(tuple(map(self._index, self._candidates(problem, rng))))
        return Task(
            name=self.name,
            meta_task=self.task.meta_task,
            queries=queries,
            pool=self.pool,
            candidates=candidates,
            relevant=[row[:1] for row in candidates],
            groups=("turns",) if self.name in TURN_TASKS else ("pairs",),
        )

    def _pose(self, index: int) -> Problem:
        rng = seeded("held_out", self.name, self.config.seed, index)
        return self.task.pose(self.config, rng, "held_out")

    def _candidates(self, problem: Problem, rng: random.Random) -> list[View]:
        """Return the right view, then wrong ones: those that nearly fit, then random ones."""
        number = self.config.num_candidates
        chosen = {self.task.key(problem.right): problem.right}

        def add(views: Iterable[View], up_to: int) -> None:
            views = iter(views)
            while len(chosen) < up_to and (view := next(views, None)) is not None:
                chosen.setdefault(self.task.key(view), view)

        num_near = (number - 1) // 2
        add(rng.sample(problem.traps, len(problem.traps)), 1 + num_near // 2)
        add(near_views(problem, self.config, rng), 1 + num_near)
        add(self._random_views(rng), number)
        add(near_views(problem, self.config, rng), number)
        if len(chosen) < number:
            raise MucoError(
                f"scenes: {len(chosen)} different answers were found for a query of {self.name}, and "
                f"`num_candidates` is {number}. Lower it, add shapes or colors, or list `tasks` without "
                f"{self.name}."
            )
        return list(chosen.values())

    def _random_views(self, rng: random.Random) -> Iterator[View]:
        """Yield right answers to problems of this task, those of the queries among them."""
        num_problems = max(self.config.num_queries, 20 * self.config.num_candidates)
        for _ in range(num_problems):
            yield self._problem(rng.randrange(num_problems)).right

    def _add_to_pool(self, view: View) -> int:
        content = self.task.content(view, self.config)
        index = self._index_by_id.setdefault(content.content_id, len(self.pool))
        if index == len(self.pool):
            self.pool.append(content)
        return index


def _few_answers(world: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of different answers to the questions that have few."""
    shapes, colors = len(world["shapes"]), len(world["colors"])
    num_objects = world["num_objects"]
    return {
        "classification": comb(shapes, num_objects) if num_objects > 1 else len(SIZES) * shapes,
        "global_vqa_1": len(world["backgrounds"]),
        "local_vqa_1": len(SIZES) * colors,
        "local_vqa_2": world["cells_per_side"] ** 2 * shapes,
    }
