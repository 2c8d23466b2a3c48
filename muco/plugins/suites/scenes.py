"""Retrieval tasks over drawn scenes that no training sample shows."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from math import comb
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from muco.core.component import Feature
from muco.core.errors import MucoError
from muco.core.sample import Content
from muco.core.suite import Suite, Task
from muco.plugins._shared.scene import BACKGROUNDS, PLACES, SIZES, SceneWorld, distinct, known, seeded
from muco.plugins._shared.scene_drawing import draw_image
from muco.plugins._shared.scene_questions import TurnTask
from muco.plugins._shared.scene_tasks import (
    PAIR_TASKS,
    TURN_TASKS,
    PairTask,
    Problem,
    SceneTask,
    View,
    near_views,
)

TaskName = TurnTask | PairTask
TASKS: dict[TaskName, SceneTask] = {**TURN_TASKS, **PAIR_TASKS}

BANK_PER_CANDIDATE = 20
"""Right answers that the random wrong ones come from, for each candidate, also if queries are few."""


class ScenesSuite(Suite):
    """Ask about held-out scenes; each query is searched among a few candidates of its own.

    There is a task for each kind of pair that the `scenes` source draws. What queries and right
    answers show is held out: no training sample shows those objects so arranged, on any background.

    A query's first candidate is the right one, all others are wrong. About half of these nearly fit:
    another object of the same picture, the picture before the edit, one attribute changed, one
    attribute traded between two objects; they may be of any split. The rest are right answers to
    other queries of the task. All are made in the same words and by the same drawing.
    """

    class Config(SceneWorld):
        tasks: Annotated[
            tuple[Annotated[TaskName, known("task", tuple(TASKS))], ...],
            Field(min_length=1),
            AfterValidator(distinct),
        ] = tuple(TASKS)
        """The tasks to run; all by default."""
        num_queries: PositiveInt = 256
        """Queries of each task."""
        num_candidates: Annotated[int, Field(ge=10, validate_default=True)] = 12
        """Candidates of each query; one divided by it is the chance level."""
        seed: NonNegativeInt = 0
        """Other seeds, other queries."""

        @field_validator("num_candidates")
        @classmethod
        def _answers_suffice(cls, num_candidates: int, info: ValidationInfo) -> int:
            if not {"shapes", "colors", "num_objects", "tasks"} <= info.data.keys():
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
        image_targets = any(TASKS[name].has_image_targets for name in config.tasks)
        return frozenset({"image_targets"} if image_targets else ())

    def __init__(self, config: Config) -> None:
        self.config = config

    def tasks(self) -> Iterable[Task]:
        for name in self.config.tasks:
            yield self._task(name)

    def _task(self, name: TaskName) -> Task:
        num_queries, num_candidates = self.config.num_queries, self.config.num_candidates
        num_problems = max(num_queries, BANK_PER_CANDIDATE * num_candidates)
        problems = [self._problem(name, index) for index in range(num_problems)]
        bank = [problem.right for problem in problems]
        pool = _Pool(TASKS[name], self.config)
        queries, candidates = [], []
        for index, problem in enumerate(problems[:num_queries]):
            rng = seeded("candidates", name, self.config.seed, index)
            queries.append(self._query(problem, rng))
            views = self._candidates(name, problem, bank, rng)
            candidates.append(tuple(pool.index(view) for view in views))
        return Task(
            name=name,
            meta_task=TASKS[name].meta_task,
            queries=queries,
            pool=pool.contents,
            candidates=candidates,
            relevant=[row[:1] for row in candidates],
            groups=("turns",) if name in TURN_TASKS else ("pairs",),
        )

    def _problem(self, name: TaskName, index: int) -> Problem:
        rng = seeded("held_out", name, self.config.seed, index)
        return TASKS[name].pose(self.config, rng, "held_out")

    def _query(self, problem: Problem, rng: random.Random) -> Content:
        text = rng.choice(problem.queries)
        if problem.picture is None:
            return Content(text)
        return Content(text, (draw_image(problem.picture, self.config.image_size_pixels),))

    def _candidates(
        self, name: TaskName, problem: Problem, bank: list[View], rng: random.Random
    ) -> list[View]:
        """Return the right view, then wrong ones: those that nearly fit, then random ones."""
        key, wanted = TASKS[name].key, self.config.num_candidates
        chosen = {key(problem.right): problem.right}

        def add(views: Iterable[View], up_to: int) -> None:
            views = iter(views)
            while len(chosen) < up_to and (view := next(views, None)) is not None:
                chosen.setdefault(key(view), view)

        num_near = (wanted - 1) // 2
        add(rng.sample(problem.traps, len(problem.traps)), 1 + num_near // 2)
        add(near_views(problem, self.config, rng), 1 + num_near)
        add((rng.choice(bank) for _ in range(len(bank))), wanted)
        add(near_views(problem, self.config, rng), wanted)
        if len(chosen) < wanted:
            raise MucoError(
                f"scenes: {len(chosen)} different answers were found for a query of {name}, and "
                f"`num_candidates` is {wanted}. Lower it, add shapes or colors, or list `tasks` without "
                f"{name}."
            )
        return list(chosen.values())


class _Pool:
    """Unique contents, each made when its view is first chosen."""

    def __init__(self, task: SceneTask, world: SceneWorld) -> None:
        self.contents: list[Content] = []
        self._task = task
        self._world = world
        self._by_view: dict[View, int] = {}
        self._by_content: dict[int, int] = {}

    def index(self, view: View) -> int:
        """Return the place of the view's content in `contents`."""
        if view not in self._by_view:
            content = self._task.content(view, self._world)
            index = self._by_content.setdefault(content.content_id, len(self.contents))
            if index == len(self.contents):
                self.contents.append(content)
            self._by_view[view] = index
        return self._by_view[view]


def _few_answers(world: Mapping[str, Any]) -> dict[TaskName, int]:
    """Return how many answers there are to the questions that have few."""
    shapes, colors = len(world["shapes"]), len(world["colors"])
    num_objects = world["num_objects"]
    return {
        "classification": comb(shapes, num_objects) if num_objects > 1 else len(SIZES) * shapes,
        "global_vqa_1": len(BACKGROUNDS),
        "local_vqa_1": len(SIZES) * colors,
        "local_vqa_2": len(PLACES) * shapes,
    }
