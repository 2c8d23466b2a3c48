"""The seven questions about one picture. Each has one right answer, and the answer has one wording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from muco.plugins.datasets.scenes.captions import a, at, caption, listed
from muco.plugins.datasets.scenes.world import CELLS, PLACES, Scene, SceneObject, reading_order

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Wordings = tuple[str, ...]
Answer = Callable[[Scene, SceneObject], str]


@dataclass(frozen=True)
class Question:
    """A kind of question about one picture, or about one object of it."""

    task: str
    meta_task: str
    answer: Answer
    """Return the only answer; most kinds ignore the object."""
    wordings: Wordings
    """`{it}` stands for the object, `{count}` for the number of objects."""
    wordings_of_one: Wordings = ()
    """For a picture with one object; empty if they are the same."""

    def queries(self, scene: Scene, index: int) -> Wordings:
        """Return the paraphrases of the question about the object of this index."""
        wordings = (len(scene.objects) == 1 and self.wordings_of_one) or self.wordings
        count = NUMBERS[len(scene.objects)]
        return tuple(wording.format(it=scene.objects[index], count=count) for wording in wordings)

    @classmethod
    def of(cls, task: str, meta_task: str, answer: Answer, *wordings: str, one: Wordings = ()) -> Question:
        """Return a question from its wordings."""
        return cls(task, meta_task, answer, wordings, one)


def _shapes(scene: Scene, it: SceneObject) -> str:
    if len(scene.objects) == 1:
        return a(f"{it.size} {it.shape}")
    return listed(a(shape) for shape in sorted(each.shape for each in scene.objects))


def _arrangement(scene: Scene, it: SceneObject) -> str:
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


def _in_mirror(scene: Scene, it: SceneObject) -> str:
    mirrored = sorted(scene.objects, key=lambda it: (CELLS[it.place][0], -CELLS[it.place][1]))
    return listed(a(f"{it.color} {it.shape} {at(_mirror(it.place))}") for it in mirrored)


def _mirror(place: str) -> str:
    row, column = CELLS[place]
    return PLACES[3 * row + 2 - column]


QUESTIONS = (
    Question.of(
        "classification",
        "classification",
        _shapes,
        "Which {count} shapes are drawn?",
        "Name the {count} shapes in the picture.",
        "What kinds of shapes are there?",
        one=(
            "Which shape is drawn, and how large?",
            "Name the shape and its size.",
            "What size and shape is the object?",
        ),
    ),
    Question.of(
        "global_vqa_1",
        "vqa",
        lambda scene, it: f"{a(scene.background)} background",
        "What color is the background?",
        "Name the color behind the objects.",
        "On what background is the picture drawn?",
    ),
    Question.of(
        "global_vqa_2",
        "vqa",
        _arrangement,
        "How are the objects arranged?",
        "Where do the shapes lie, seen from each other?",
        "Describe the arrangement of the shapes.",
        one=(
            "What is where in the picture?",
            "In which part of the picture is which shape?",
            "How is the picture arranged?",
        ),
    ),
    Question.of(
        "local_vqa_1",
        "vqa",
        lambda scene, it: f"{it.size} and {it.color}",
        "What does the {it.shape} look like?",
        "What size and color is the {it.shape}?",
        "Describe the {it.shape}.",
    ),
    Question.of(
        "local_vqa_2",
        "vqa",
        lambda scene, it: f"{a(it.shape)} {at(it.place)}",
        "What is the {it.color} object, and where is it?",
        "Which shape is {it.color}, and in which part of the picture?",
        "Name the {it.color} shape and its place.",
    ),
    Question.of(
        "creative",
        "vqa",
        _in_mirror,
        "Imagine the picture in a mirror. What do you see?",
        "Imagine that left and right change places. What is where then?",
        "What would be seen if the picture were flipped from left to right?",
    ),
    Question.of(
        "retrieval",
        "retrieval",
        lambda scene, it: caption(scene),
        "Describe the picture in detail.",
        "What does the picture show?",
        "Write a full caption for the picture.",
    ),
)
"""The seven kinds of M3T (arXiv:2602.06393), in its order."""
