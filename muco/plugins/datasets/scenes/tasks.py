"""The tasks about scenes, for the `scenes` source and suite: seven questions, and eight kinds of single pair.

A target shows a view: a scene, or one object of it. Wrong answers are views too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Literal

from muco.core.image import EncodedImage
from muco.core.sample import Content
from muco.plugins.datasets.scenes.captions import (
    a,
    caption,
    edit_text,
    on_background,
    references,
    rephrased_caption,
    title,
)
from muco.plugins.datasets.scenes.drawing import draw_image, draw_part
from muco.plugins.datasets.scenes.edits import draw_change, near_scenes
from muco.plugins.datasets.scenes.questions import QUESTIONS, Question
from muco.plugins.datasets.scenes.world import Scene, SceneWorld, Split, draw_scene, drawn_again

Wordings = tuple[str, ...]
CaptionLength = Literal["none", "short", "full"]


@dataclass(frozen=True, slots=True)
class View:
    """What a target shows: a scene, and the index of an object for tasks about one object."""

    scene: Scene
    subject: int = 0


@dataclass(frozen=True)
class Problem:
    """A query and its right answer."""

    queries: Wordings
    """Paraphrases."""
    picture: Scene | None
    """The picture of the query, if any."""
    right: View
    traps: tuple[View, ...] = ()
    """Wrong answers that the query itself shows: other objects, or the picture before the edit."""

    def images(self, world: SceneWorld) -> tuple[EncodedImage, ...]:
        """Return the query's picture, if any."""
        return (draw_image(self.picture, world.image_size_pixels),) if self.picture is not None else ()


Pose = Callable[[SceneWorld, random.Random, Split], Problem]


@dataclass(frozen=True)
class Picture:
    """How the image of a target is drawn and described."""

    draw: Callable[[View, int], EncodedImage]
    """From the view and the image size in pixels."""
    captions: dict[CaptionLength, Callable[[View], str]]


@dataclass(frozen=True)
class SceneTask:
    """How a task draws problems, and what its targets are."""

    meta_task: str
    pose: Pose
    """Draw a problem whose query and right answer show scenes of the split."""
    key: Callable[[View], str]
    """The facts of a target, as text: a view is right if its key equals that of the right view."""
    text: Callable[[View], str] | None = None
    """The text of a target, if it has one."""
    image: Picture | None = None
    """The image of a target, if it has one."""

    def content(self, view: View, world: SceneWorld, captions: CaptionLength = "none") -> Content:
        """Return the content of a target, its image with a caption unless `captions` is none."""
        text = self.text(view) if self.text else ""
        if self.image is None:
            return Content(text)
        described = self.image.captions[captions](view) if captions != "none" else ""
        return Content(text, (self.image.draw(view, world.image_size_pixels),), described)


def near_views(problem: Problem, world: SceneWorld, rng: random.Random) -> Iterator[View]:
    """Yield views near the right one or near the query's picture; right ones and repeats may occur."""
    subject = problem.right.subject
    scenes = near_scenes(problem.right.scene, world, rng)
    if problem.picture in (None, problem.right.scene):
        yield from (View(scene, subject) for scene in scenes)
        return
    for pair in zip(scenes, near_scenes(problem.picture, world, rng), strict=False):
        yield from (View(scene, subject) for scene in pair)


def _on_object(queries: Callable[[Scene, int, random.Random], Wordings]) -> Pose:
    """Return what draws problems about one object, from the queries about the object of an index."""

    def pose(world: SceneWorld, rng: random.Random, split: Split) -> Problem:
        scene, subject = draw_scene(world, rng, split), rng.randrange(world.num_objects)
        others = tuple(View(scene, other) for other in range(len(scene.objects)) if other != subject)
        return Problem(queries(scene, subject, rng), scene, View(scene, subject), others)

    return pose


def _tell(prompts: Wordings, world: SceneWorld, rng: random.Random, split: Split) -> Problem:
    scene = draw_scene(world, rng, split)
    return Problem(_filled(prompts, caption(scene)), None, View(scene))


def _edit(prompts: Wordings, world: SceneWorld, rng: random.Random, split: Split) -> Problem:
    before, change = draw_change(world, rng, split)
    queries = _filled(prompts, edit_text(before, change))
    return Problem(queries, before, View(change.apply(before)), (View(before),))


def _repeat(prompts: Wordings, world: SceneWorld, rng: random.Random, split: Split) -> Problem:
    scene = draw_scene(world, rng, split)
    return Problem(prompts, scene, View(drawn_again(scene, world, rng)))


def _select(scene: Scene, subject: int, rng: random.Random) -> Wordings:
    return _filled(SELECT, rng.choice(references(scene.objects[subject])))


def _filled(prompts: Wordings, words: str) -> Wordings:
    return tuple(prompt.format(words) for prompt in prompts)


_facts, _arrangement = attrgetter("scene.facts"), attrgetter("scene.arrangement")


def _part_facts(view: View) -> str:
    it = view.scene.objects[view.subject]
    return f"{it.size} {it.color} {it.shape} {on_background(view.scene)}"


def _title(view: View) -> str:
    return title(view.scene)


def _part_name(view: View) -> str:
    it = view.scene.objects[view.subject]
    return a(f"{it.color} {it.shape}")


_image = Picture(
    lambda view, size_pixels: draw_image(view.scene, size_pixels),
    {"short": _title, "full": lambda view: caption(view.scene)},
)
_part = Picture(
    lambda view, size_pixels: draw_part(view.scene, view.subject, size_pixels),
    {"short": _part_name, "full": _part_facts},
)


def _turn_task(question: Question) -> SceneTask:
    def answer(view: View) -> str:
        return question.answer(view.scene, view.scene.objects[view.subject])

    pose = _on_object(lambda scene, subject, rng: question.queries(scene, subject))
    return SceneTask(question.meta_task, pose, key=answer, text=answer)


TURN_TASKS = {question.task: _turn_task(question) for question in QUESTIONS}
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

PAIR_TASKS = {
    "caption_to_image": SceneTask("retrieval", partial(_tell, FIND), _facts, image=_image),
    "edit_to_image": SceneTask("retrieval", partial(_edit, EDIT), _facts, image=_image),
    "crop_grounding": SceneTask("grounding", _on_object(_select), _part_facts, image=_part),
    "same_scene": SceneTask("retrieval", partial(_repeat, REPEAT), _arrangement, image=_image),
    "caption_paraphrase": SceneTask(
        "retrieval", partial(_tell, REPHRASE), _facts, lambda view: rephrased_caption(view.scene)
    ),
    "caption_to_captioned_image": SceneTask("retrieval", partial(_tell, FIND_TITLED), _facts, _title, _image),
    "edit_to_captioned_image": SceneTask("retrieval", partial(_edit, EDIT_TITLED), _facts, _title, _image),
    "same_scene_to_captioned_image": SceneTask(
        "retrieval", partial(_repeat, REPEAT_TITLED), _arrangement, _title, _image
    ),
}
"""Text -> image; image and text -> image, twice; image -> image; text -> text; then text, image and
text, and image, each -> image and text. With the questions these are all nine directions."""
