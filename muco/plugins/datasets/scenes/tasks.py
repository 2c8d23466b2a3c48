"""The tasks about scenes, for the `scenes` source and suite: seven questions, and eight kinds of single pair.

A target shows a view: a scene, or one object of it. Wrong answers are views too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from muco.core.sample import Content
from muco.plugins.datasets.scenes.captions import (
    caption,
    edit_text,
    on_background,
    references,
    rephrased_caption,
    title,
)
from muco.plugins.datasets.scenes.drawing import draw_image, draw_part
from muco.plugins.datasets.scenes.edits import draw_change, near_scenes
from muco.plugins.datasets.scenes.questions import QUESTIONS, MetaTask, Question, TurnTask
from muco.plugins.datasets.scenes.world import Scene, SceneWorld, Split, draw_scene, drawn_again

PairTask = Literal[
    "caption_to_image",
    "edit_to_image",
    "crop_grounding",
    "same_scene",
    "caption_paraphrase",
    "caption_to_captioned_image",
    "edit_to_captioned_image",
    "same_scene_to_captioned_image",
]


@dataclass(frozen=True, slots=True)
class View:
    """What a target shows: a scene, and the index of an object for tasks about one object."""

    scene: Scene
    subject: int = 0


@dataclass(frozen=True)
class Problem:
    """A query and its right answer."""

    queries: tuple[str, ...]
    """Paraphrases."""
    picture: Scene | None
    """The picture of the query, if any."""
    right: View
    traps: tuple[View, ...] = ()
    """Wrong answers that the query itself shows: other objects, or the picture before the edit."""


@dataclass(frozen=True)
class SceneTask:
    """How a task draws problems, and what its targets are."""

    meta_task: MetaTask
    pose: Callable[[SceneWorld, random.Random, Split], Problem]
    """Draw a problem whose query and right answer show scenes of the split."""
    key: Callable[[View], str]
    """The facts of a target, as text: a view is right if its key equals that of the right view."""
    content: Callable[[View, SceneWorld], Content]
    """Make the content of a target."""

    @property
    def has_image_targets(self) -> bool:
        """Whether a target holds an image."""
        return self.content in (_image, _captioned_image, _part)


def near_views(problem: Problem, world: SceneWorld, rng: random.Random) -> Iterator[View]:
    """Yield views near the right one or near the query's picture; right ones and repeats may occur."""
    subject = problem.right.subject
    scenes = near_scenes(problem.right.scene, world, rng)
    if problem.picture in (None, problem.right.scene):
        yield from (View(scene, subject) for scene in scenes)
        return
    for pair in zip(scenes, near_scenes(problem.picture, world, rng), strict=False):
        yield from (View(scene, subject) for scene in pair)


# Functions that draw problems.


def _ask(question: Question, world: SceneWorld, rng: random.Random, split: Split) -> Problem:
    scene, subject = draw_scene(world, rng, split), rng.randrange(world.num_objects)
    queries = question.queries(scene, subject)
    return Problem(queries, scene, View(scene, subject), _others(scene, subject))


def _others(scene: Scene, subject: int) -> tuple[View, ...]:
    return tuple(View(scene, other) for other in range(len(scene.objects)) if other != subject)


def _tell(prompts: tuple[str, ...], world: SceneWorld, rng: random.Random, split: Split) -> Problem:
    scene = draw_scene(world, rng, split)
    return Problem(tuple(prompt.format(caption(scene)) for prompt in prompts), None, View(scene))


def _edit(prompts: tuple[str, ...], world: SceneWorld, rng: random.Random, split: Split) -> Problem:
    before, change = draw_change(world, rng, split)
    queries = tuple(prompt.format(edit_text(before, change)) for prompt in prompts)
    return Problem(queries, before, View(change.apply(before)), (View(before),))


def _repeat(prompts: tuple[str, ...], world: SceneWorld, rng: random.Random, split: Split) -> Problem:
    scene = draw_scene(world, rng, split)
    return Problem(prompts, scene, View(drawn_again(scene, world, rng)))


def _point(prompts: tuple[str, ...], world: SceneWorld, rng: random.Random, split: Split) -> Problem:
    scene, subject = draw_scene(world, rng, split), rng.randrange(world.num_objects)
    named = rng.choice(references(scene.objects[subject]))
    queries = tuple(prompt.format(named) for prompt in prompts)
    return Problem(queries, scene, View(scene, subject), _others(scene, subject))


# Keys and contents of targets.


def _answer(question: Question, view: View) -> str:
    return question.answer(view.scene, view.subject)


def _answer_text(question: Question, view: View, world: SceneWorld) -> Content:
    return Content(question.answer(view.scene, view.subject))


def _facts(view: View) -> str:
    return view.scene.facts


def _objects(view: View) -> str:
    return view.scene.arrangement


def _part_facts(view: View) -> str:
    it = view.scene.objects[view.subject]
    return f"{it.size} {it.color} {it.shape} {on_background(view.scene)}"


def _rephrased(view: View, world: SceneWorld) -> Content:
    return Content(rephrased_caption(view.scene))


def _image(view: View, world: SceneWorld) -> Content:
    return Content(images=(draw_image(view.scene, world.image_size_pixels),))


def _captioned_image(view: View, world: SceneWorld) -> Content:
    return Content(title(view.scene), (draw_image(view.scene, world.image_size_pixels),))


def _part(view: View, world: SceneWorld) -> Content:
    return Content(images=(draw_part(view.scene, view.subject, world.image_size_pixels),))


TURN_TASKS: dict[TurnTask, SceneTask] = {
    question.task: SceneTask(
        question.meta_task,
        partial(_ask, question),
        partial(_answer, question),
        partial(_answer_text, question),
    )
    for question in QUESTIONS
}
"""Image -> text, and for the local questions image and text -> text."""

FIND = (
    "Find the picture that matches the caption: {}",
    "Show the picture that this caption describes: {}",
    "Which picture shows this: {}",
)
FIND_TITLED = (
    "Find the picture, with its title, that matches the caption: {}",
    "Show the titled picture that this caption describes: {}",
    "Which picture and title go with this: {}",
)
REPHRASE = (
    "Find the caption that says the same in other words: {}",
    "Rephrase this caption: {}",
    "Which caption describes the same picture as this one: {}",
)
EDIT = (
    "Show the picture after this change: {}.",
    "Find the picture that results from this edit: {}.",
    "Change the picture: {}.",
)
EDIT_TITLED = (
    "Show the picture after this change, with its new title: {}.",
    "Find the titled picture that results from this edit: {}.",
    "Change the picture and give it a title: {}.",
)
REPEAT = (
    "Find the same objects in the same places on another background.",
    "Show a picture of these same objects, placed alike, in front of another background.",
    "Which other picture differs from this one by its background alone?",
)
REPEAT_TITLED = (
    "Find the same objects in the same places on another background, with a title.",
    "Show a titled picture of these same objects, placed alike, in front of another background.",
    "Which other picture, given with its title, differs from this one by its background alone?",
)
SELECT = (
    "Select the part of the picture that shows {}.",
    "Cut {} out of the picture.",
    "Which part of the picture holds {}?",
)

PAIR_TASKS: dict[PairTask, SceneTask] = {
    "caption_to_image": SceneTask("retrieval", partial(_tell, FIND), _facts, _image),
    "edit_to_image": SceneTask("retrieval", partial(_edit, EDIT), _facts, _image),
    "crop_grounding": SceneTask("grounding", partial(_point, SELECT), _part_facts, _part),
    "same_scene": SceneTask("retrieval", partial(_repeat, REPEAT), _objects, _image),
    "caption_paraphrase": SceneTask("retrieval", partial(_tell, REPHRASE), _facts, _rephrased),
    "caption_to_captioned_image": SceneTask(
        "retrieval", partial(_tell, FIND_TITLED), _facts, _captioned_image
    ),
    "edit_to_captioned_image": SceneTask("retrieval", partial(_edit, EDIT_TITLED), _facts, _captioned_image),
    "same_scene_to_captioned_image": SceneTask(
        "retrieval", partial(_repeat, REPEAT_TITLED), _objects, _captioned_image
    ),
}
"""Text -> image; image and text -> image, twice; image -> image; text -> text; then text, image and
text, and image, each -> image and text. With the questions these are all nine directions."""
