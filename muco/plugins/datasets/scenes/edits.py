"""Scenes that differ a little: edits for queries, and wrong answers that are nearly right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, zip_longest

from muco.plugins.datasets.scenes.world import (
    ATTRIBUTES,
    MAX_DRAWS,
    SIZES,
    Attribute,
    Scene,
    SceneWorld,
    Split,
    draw_scene,
)


@dataclass(frozen=True, slots=True)
class Change:
    """A new value for one attribute of one object, or for the background."""

    attribute: Attribute
    value: str
    subject: int = 0
    """Index of the object; unused for the background."""

    def apply(self, scene: Scene) -> Scene:
        """Return the scene after the change; everything else, jitter included, stays."""
        if self.attribute == "background":
            return replace(scene, **{self.attribute: self.value})
        return _with_values(scene, self.attribute, {self.subject: self.value})


@dataclass(frozen=True, slots=True)
class Trade:
    """Two objects exchange one attribute, so that the same words describe other objects."""

    attribute: Attribute
    subjects: tuple[int, int]

    def apply(self, scene: Scene) -> Scene:
        """Return the scene after the exchange; it is equal if both objects have the same size."""
        one, other = self.subjects
        values = [getattr(it, self.attribute) for it in scene.objects]
        return _with_values(scene, self.attribute, {one: values[other], other: values[one]})


def _with_values(scene: Scene, attribute: Attribute, values: dict[int, str]) -> Scene:
    objects = list(scene.objects)
    for subject, value in values.items():
        objects[subject] = replace(objects[subject], **{attribute: value})
    return replace(scene, objects=tuple(objects))


def changes(scene: Scene, attribute: Attribute, world: SceneWorld) -> list[Change]:
    """Return every change of one attribute that keeps shapes, colours and places distinct."""
    if attribute == "background":
        return [Change(attribute, name) for name in world.backgrounds if name != scene.background]
    values = {"color": world.colors, "shape": world.shapes, "size": SIZES, "place": world.places}[attribute]
    present = [getattr(it, attribute) for it in scene.objects]
    return [
        Change(attribute, value, subject)
        for subject, own in enumerate(present)
        for value in values
        if value != own and (attribute == "size" or value not in present)
    ]


def draw_change(world: SceneWorld, rng: random.Random, split: Split) -> tuple[Scene, Change]:
    """Return a scene and a change, both of whose scenes, before and after, are of the split.

    All attributes that can be changed in this world are equally likely.

    Raises:
        MucoError: the world is so small that the split is empty.
    """
    for attribute in rng.sample(ATTRIBUTES, len(ATTRIBUTES)):
        for _ in range(MAX_DRAWS):
            scene = draw_scene(world, rng, split)
            possible = changes(scene, attribute, world)
            if not possible:
                break
            allowed = [change for change in possible if change.apply(scene).split == split]
            if allowed:
                return scene, rng.choice(allowed)
    raise AssertionError("a change of the background is always possible and keeps the split")


def near_scenes(scene: Scene, world: SceneWorld, rng: random.Random) -> Iterator[Scene]:
    """Yield scenes of any split that differ by one change or one trade; repeats may occur.

    The attributes alternate, in random order, so that the first few scenes differ in different ways.
    """
    pairs = list(combinations(range(len(scene.objects)), 2))
    trades = [Trade(attribute, pair) for attribute in ATTRIBUTES[:4] for pair in pairs]
    ways: list[list[Change] | list[Trade]] = [changes(scene, name, world) for name in ATTRIBUTES]
    ways.append(trades)
    for way in ways:
        rng.shuffle(way)
    rng.shuffle(ways)
    for steps in zip_longest(*ways):
        yield from (step.apply(scene) for step in steps if step is not None)
