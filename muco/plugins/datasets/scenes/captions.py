"""Texts about a scene. Every fact has one wording, so texts differ only if the facts do."""

from __future__ import annotations

from collections.abc import Iterable

from muco.plugins.datasets.scenes.edits import Change
from muco.plugins.datasets.scenes.world import Scene, SceneObject, reading_order


def a(phrase: str) -> str:
    """Return the phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def listed(phrases: Iterable[str]) -> str:
    """Join as in "one, two and three"."""
    *most, last = phrases
    return f"{', '.join(most)} and {last}" if most else last


def at(place: str) -> str:
    """Return where an object is, as in "at the top left"."""
    return f"in the {place}" if place == "center" else f"at the {place}"


def on_background(scene: Scene) -> str:
    """Return "on a pale pink background"."""
    return f"on {a(scene.background)} background"


def caption(scene: Scene) -> str:
    """Return a description of the whole picture, in reading order."""
    phrases = (a(f"{it.size} {it.color} {it.shape} {at(it.place)}") for it in reading_order(scene))
    return f"{listed(phrases)} {on_background(scene)}"


def rephrased_caption(scene: Scene) -> str:
    """Return the facts of `caption` in other words, from the last object to the first."""
    phrases = [
        f"{at(it.place)} {a(it.shape)} that is {it.color} and {it.size}"
        for it in reversed(reading_order(scene))
    ]
    return f"{on_background(scene)}: {', '.join(phrases)}"


def title(scene: Scene) -> str:
    """Return the objects without size and place, in reading order."""
    return listed(a(f"{it.color} {it.shape}") for it in reading_order(scene))


def edit_text(scene: Scene, change: Change) -> str:
    """Return a change of one object or of the background as an instruction: "make the red circle blue"."""
    ((index, value),) = change.values.items()
    named = f"the {scene.objects[index].color} {scene.objects[index].shape}"
    return {
        "background": f"make the background {value}",
        "place": f"put {named} {at(value)}",
        "shape": f"turn {named} into {a(value)}",
    }.get(change.attribute, f"make {named} {value}")


def references(it: SceneObject) -> tuple[str, str, str]:
    """Return three references to an object, each by one attribute."""
    return f"the {it.shape}", f"the {it.color} object", f"the object {at(it.place)}"
