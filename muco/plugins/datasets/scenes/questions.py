"""The seven questions about one picture. Each has one right answer, and the answer has one wording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from muco.plugins.datasets.scenes.captions import a, at, caption, listed
from muco.plugins.datasets.scenes.world import CELLS, PLACES, Place, Scene, SceneObject, reading_order

TurnTask = Literal[
    "classification",
    "global_vqa_1",
    "global_vqa_2",
    "local_vqa_1",
    "local_vqa_2",
    "creative",
    "retrieval",
]
MetaTask = Literal["classification", "vqa", "retrieval", "grounding"]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


Wordings = tuple[str, ...]


def _fixed(*wordings: str) -> Callable[[Scene, int], Wordings]:
    return lambda scene, subject: wordings


def _what_shapes(scene: Scene, subject: int) -> Wordings:
    if len(scene.objects) == 1:
        return (
            "Which shape is drawn, and how large?",
            "Name the shape and its size.",
            "What size and shape is the object?",
        )
    count = NUMBERS[len(scene.objects)]
    return (
        f"Which {count} shapes are drawn?",
        f"Name the {count} shapes in the picture.",
        "What kinds of shapes are there?",
    )


def _shapes(scene: Scene, subject: int) -> str:
    if len(scene.objects) == 1:
        return a(f"{scene.objects[0].size} {scene.objects[0].shape}")
    return listed(a(shape) for shape in sorted(it.shape for it in scene.objects))


def _background(scene: Scene, subject: int) -> str:
    return f"{a(scene.background)} background"


def _what_arrangement(scene: Scene, subject: int) -> Wordings:
    if len(scene.objects) == 1:
        return (
            "What is where in the picture?",
            "In which part of the picture is which shape?",
            "How is the picture arranged?",
        )
    return (
        "How are the objects arranged?",
        "Where do the shapes lie, seen from each other?",
        "Describe the arrangement of the shapes.",
    )


def _arrangement(scene: Scene, subject: int) -> str:
    first, *rest = reading_order(scene)
    if not rest:
        return f"the {first.shape} is {at(first.place)}"
    pairs = zip([first, *rest], rest, strict=False)
    steps = [f"{_relation(before, after)} the {after.shape}" for before, after in pairs]
    return f"the {first.shape} is {', which is '.join(steps)}"


def _relation(first: SceneObject, second: SceneObject) -> str:
    """Return the position of the earlier of two objects in reading order relative to the later."""
    (row, column), (second_row, second_column) = CELLS[first.place], CELLS[second.place]
    words = ["above"] if row < second_row else []
    if column != second_column:
        words.append("left of" if column < second_column else "right of")
    return " and ".join(words)


def _what_look(scene: Scene, subject: int) -> Wordings:
    shape = scene.objects[subject].shape
    return (
        f"What does the {shape} look like?",
        f"What size and color is the {shape}?",
        f"Describe the {shape}.",
    )


def _look(scene: Scene, subject: int) -> str:
    return f"{scene.objects[subject].size} and {scene.objects[subject].color}"


def _what_and_where(scene: Scene, subject: int) -> Wordings:
    color = scene.objects[subject].color
    return (
        f"What is the {color} object, and where is it?",
        f"Which shape is {color}, and in which part of the picture?",
        f"Name the {color} shape and its place.",
    )


def _and_where(scene: Scene, subject: int) -> str:
    return f"{a(scene.objects[subject].shape)} {at(scene.objects[subject].place)}"


def _in_mirror(scene: Scene, subject: int) -> str:
    mirrored = sorted(scene.objects, key=lambda it: (CELLS[it.place][0], -CELLS[it.place][1]))
    return listed(a(f"{it.color} {it.shape} {at(_mirror(it.place))}") for it in mirrored)


def _mirror(place: Place) -> Place:
    row, column = CELLS[place]
    return PLACES[3 * row + 2 - column]


@dataclass(frozen=True)
class Question:
    """A kind of question about one picture: its paraphrases and its only answer.

    Both are functions of the scene and the index of an object, which most kinds ignore.
    """

    task: TurnTask
    meta_task: MetaTask
    queries: Callable[[Scene, int], Wordings]
    answer: Callable[[Scene, int], str]


_WHAT_BACKGROUND = _fixed(
    "What color is the background?",
    "Name the color behind the objects.",
    "On what background is the picture drawn?",
)
_WHAT_IN_MIRROR = _fixed(
    "Imagine the picture in a mirror. What do you see?",
    "Imagine that left and right change places. What is where then?",
    "What would be seen if the picture were flipped from left to right?",
)
_WHAT_ALL = _fixed(
    "Describe the picture in detail.",
    "What does the picture show?",
    "Write a full caption for the picture.",
)

QUESTIONS = (
    Question("classification", "classification", _what_shapes, _shapes),
    Question("global_vqa_1", "vqa", _WHAT_BACKGROUND, _background),
    Question("global_vqa_2", "vqa", _what_arrangement, _arrangement),
    Question("local_vqa_1", "vqa", _what_look, _look),
    Question("local_vqa_2", "vqa", _what_and_where, _and_where),
    Question("creative", "vqa", _WHAT_IN_MIRROR, _in_mirror),
    Question("retrieval", "retrieval", _WHAT_ALL, lambda scene, subject: caption(scene)),
)
"""The seven kinds of M3T (arXiv:2602.06393), in its order."""
