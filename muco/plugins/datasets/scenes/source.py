"""Drawn scenes with exact ground truth: a data set that needs no download."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator

from muco.core.component import Feature
from muco.core.sample import Content, Pair, Sample
from muco.core.source import Source
from muco.plugins.datasets.names import check_known
from muco.plugins.datasets.scenes.captions import caption, title
from muco.plugins.datasets.scenes.drawing import draw_image
from muco.plugins.datasets.scenes.questions import QUESTIONS
from muco.plugins.datasets.scenes.tasks import (
    PAIR_TASKS,
    CaptionLength,
    Problem,
    SceneTask,
    View,
    near_views,
)
from muco.plugins.datasets.scenes.world import Scene, SceneWorld, draw_scene, seeded

PAIR_WEIGHTS: dict[str, float] = dict.fromkeys(PAIR_TASKS, 1.0)


class Scenes(Source):
    """Draw coloured shapes, with questions about them like those of M3T and MMEB about photographs.

    A share of the samples have one picture and the seven questions of M3T. The others have one pair with
    hard negatives, in the nine directions between text, image and both. Sample i depends only on the
    settings, the seed and i.

    No arrangement of objects that is held out for the `scenes` suite is drawn or captioned here, on either
    side of a pair, on any background, for any seed and settings.

    References:
        Gu et al. 2026, arXiv:2602.06393: M3T, seven kinds of question about one image.
        Jiang et al. 2024, arXiv:2410.05160: MMEB, instructions before queries of any modality.
    """

    class Config(SceneWorld):
        num_samples: PositiveInt = 12000
        """Samples in the data set."""
        seed: NonNegativeInt = 0
        """Another seed gives other samples."""
        turn_share: Annotated[float, Field(ge=0, le=1)] = 0.8
        """The share of samples with the seven turns, from 0 to 1; the others are single pairs."""
        num_negatives: NonNegativeInt = 1
        """Hard negatives of a single pair: the picture before the edit, the other object, a fact changed."""
        pairs: dict[str, NonNegativeFloat] = PAIR_WEIGHTS
        """Kinds of single pair and their weights; a kind that is left out does not occur."""
        captions: CaptionLength = "none"
        """Captions of the images, for packers that write an image as text. short: colours and shapes. full:
        also sizes, positions and background."""

        @field_validator("pairs")
        @classmethod
        def _some_weight(cls, pairs: dict[str, float]) -> dict[str, float]:
            check_known("kind of pair", pairs, PAIR_TASKS)
            if not any(pairs.values()):
                raise ValueError(
                    "no kind of pair has a weight above 0. Give one a weight; or, for turns alone, set "
                    "`turn_share: 1` and leave `pairs` out"
                )
            return pairs

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        image_targets = any(config.pairs.get(name) for name, task in PAIR_TASKS.items() if task.image)
        return frozenset({"image_targets"} if config.turn_share < 1 and image_targets else ())

    def __init__(self, config: Config) -> None:
        self.config = config
        self.weights: dict[str, float] = {name: config.pairs.get(name, 0.0) for name in PAIR_TASKS}

    def __len__(self) -> int:
        return self.config.num_samples

    def records(self, start: int = 0) -> Iterator[int]:
        return iter(range(start, len(self)))

    def sample(self, record: int) -> Sample:
        rng = seeded("train", self.config.seed, record)
        draw = self._turns if rng.random() < self.config.turn_share else self._single_pair
        return draw(f"{record:09d}", rng)

    def _turns(self, sample_id: str, rng: random.Random) -> Sample:
        scene = draw_scene(self.config, rng, "train")
        pairs = []
        for question in QUESTIONS:
            subject = rng.randrange(len(scene.objects))
            queries = tuple(map(Content, question.queries(scene, subject)))
            pairs.append(
                Pair(question.task, queries, Content(question.answer(scene, scene.objects[subject])))
            )
        image = draw_image(scene, self.config.image_size_pixels)
        return Sample(sample_id, "scenes", (image,), tuple(pairs), self._caption(scene))

    def _caption(self, scene: Scene | None) -> str:
        """Return the caption of a query's picture, if there is one and it is to have one."""
        describe = {"short": title, "full": caption}.get(self.config.captions)
        return describe(scene) if scene is not None and describe else ""

    def _near(self, task: SceneTask, problem: Problem, rng: random.Random) -> list[View]:
        """Return wrong answers that nearly fit, none held out; those that the query shows come first."""
        views: dict[str, View] = {task.key(problem.right): problem.right}
        for view in chain(problem.traps, near_views(problem, self.config, rng)):
            if len(views) > self.config.num_negatives:
                break
            if view.scene.split == "train":
                views.setdefault(task.key(view), view)
        return list(views.values())[1:]

    def _single_pair(self, sample_id: str, rng: random.Random) -> Sample:
        (name,) = rng.choices(list(self.weights), list(self.weights.values()))
        task = PAIR_TASKS[name]
        problem = task.pose(self.config, rng, "train")
        pair = Pair(
            name,
            tuple(map(Content, problem.queries)),
            task.content(problem.right, self.config, self.config.captions),
            tuple(task.content(view, self.config) for view in self._near(task, problem, rng)),
        )
        images = problem.images(self.config)
        return Sample(sample_id, "scenes", images, (pair,), self._caption(problem.picture))
