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
    Scene,
    SceneWorld,
    Split,
    draw_scene,
)


@dataclass(frozen=True, slots=True)
class Change:
    """New values for one attribute of some objects, or a new background."""

    attribute: str
    values: dict[int, str]
    """By index of the object; the index of a new background is 0."""

    def apply(self, scene: Scene) -> Scene:
        """Return the scene after the change; everything else, jitter included, stays."""
        if self.attribute == "background":
            return replace(scene, background=self.values[0])
        objects = list(scene.objects)
        for index, value in self.values.items():
            objects[index] = replace(objects[index], **{self.attribute: value})
        return replace(scene, objects=tuple(objects))


def changes(scene: Scene, attribute: str, world: SceneWorld) -> list[Change]:
    """Return every change of one attribute that keeps shapes, colours and places distinct."""
    if attribute == "background":
        return [Change(attribute, {0: name}) for name in world.backgrounds if name != scene.background]
    values = {"color": world.colors, "shape": world.shapes, "size": SIZES, "place": world.places}[attribute]
    present = [getattr(it, attribute) for it in scene.objects]
    return [
        Change(attribute, {index: value})
        for index, own in enumerate(present)
        for value in values
        if value != own and (attribute == "size" or value not in present)
    ]


def _trades(scene: Scene, attribute: str) -> list[Change]:
    """Return the changes by which two objects exchange an attribute: the same words, other objects."""
    values = [getattr(it, attribute) for it in scene.objects]
    pairs = combinations(range(len(values)), 2)
    return [Change(attribute, {one: values[other], other: values[one]}) for one, other in pairs]


def draw_change(world: SceneWorld, rng: random.Random, split: Split) -> tuple[Scene, Change]:
    """Return a scene and a change; the scenes before and after are of the split, else raise MucoError.

    All attributes that can be changed in this world are equally likely.
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
    ways = [changes(scene, name, world) for name in ATTRIBUTES]
    ways.append([trade for name in ATTRIBUTES[:4] for trade in _trades(scene, name)])
    for way in ways:
        rng.shuffle(way)
    rng.shuffle(ways)
    for steps in zip_longest(*ways):
        yield from (step.apply(scene) for step in steps if step is not None)
