"""Scenes: a few coloured shapes on a small grid, with every fact known.

One arrangement of objects in eight is held out, by a hash. Training never draws it, on any background; the
`scenes` suite asks about held-out arrangements only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from muco.core.component import ComponentConfig
from muco.core.errors import MucoError
from muco.core.ids import stable_id
from muco.plugins.datasets.names import Names, known

RGB = tuple[int, int, int]
Size = Literal["small", "large"]
Split = Literal["train", "held_out"]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "arrow", "moon", "ring")
SIZES: tuple[Size, ...] = ("small", "large")
COLOR_RGB: dict[str, RGB] = {
    "red": (225, 25, 30),
    "orange": (250, 130, 0),
    "yellow": (250, 210, 0),
    "green": (25, 165, 60),
    "cyan": (0, 200, 215),
    "blue": (30, 70, 230),
    "purple": (155, 65, 215),
    "pink": (250, 90, 180),
    "brown": (155, 95, 50),
    "gray": (135, 135, 135),
}
BACKGROUND_RGB: dict[str, RGB] = {
    "white": (252, 252, 252),
    "pale gray": (212, 212, 215),
    "pale pink": (255, 203, 215),
    "pale orange": (255, 220, 178),
    "pale yellow": (255, 249, 188),
    "pale green": (203, 243, 196),
    "pale cyan": (192, 250, 250),
    "pale blue": (190, 213, 255),
    "pale purple": (226, 203, 255),
    "pale brown": (224, 204, 184),
    "black": (5, 5, 5),
    "dark gray": (68, 68, 72),
    "dark red": (88, 10, 20),
    "dark green": (8, 65, 30),
    "dark blue": (15, 20, 95),
    "dark purple": (75, 15, 90),
}
COLORS, BACKGROUNDS = tuple(COLOR_RGB), tuple(BACKGROUND_RGB)
DEFAULT_COLORS = ("red", "orange", "yellow", "green", "blue", "purple")
PLACES = (
    *("top left", "top", "top right"),
    *("left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
)
CELLS = {place: divmod(index, 3) for index, place in enumerate(PLACES)}
"""Row and column of each place on a grid of 3 x 3; a grid of 2 x 2 has the corners only."""
CORNERS = ("top left", "top right", "bottom left", "bottom right")
ATTRIBUTES = ("color", "shape", "size", "place", "background")

ONE_HELD_OUT_IN = 8
MAX_DRAWS = 1000
"""Draws after which a split counts as empty; a split with one scene in eight never needs so many."""


class SceneWorld(ComponentConfig):
    """Settings of the scenes; use the same ones for source and suite."""

    image_size_pixels: Annotated[int, Field(ge=32, le=2048)] = 56
    """Height and width. Small shapes are hard to tell apart below 56."""
    shapes: Annotated[Names, known("shape", SHAPES)] = ("circle", "square", "triangle", "star", "cross")
    """The shapes that objects have: some of circle, square, triangle, star, diamond, cross, heart,
    arrow, moon, ring."""
    colors: Annotated[Names, known("color", COLORS)] = DEFAULT_COLORS
    """The colours that objects have: some of red, orange, yellow, green, cyan, blue, purple, pink,
    brown, gray."""
    backgrounds: Annotated[Names, known("background", BACKGROUNDS)] = BACKGROUNDS[:10]
    """The backgrounds that objects lie on: white, the pale ones, and optionally black, dark gray, dark red,
    dark green, dark blue, dark purple; a mixture of pale and dark makes objects harder to learn."""
    cells_per_side: Literal[2, 3] = 2
    """The grid that objects lie on: 2 has the four corners for places, 3 has nine, and smaller objects."""
    num_objects: Annotated[int, Field(ge=1, le=len(PLACES), validate_default=True)] = 2
    """Objects in a picture, all of different shape, colour and place: no more than there are of each."""

    @field_validator("num_objects")
    @classmethod
    def _names_suffice(cls, num_objects: int, info: ValidationInfo) -> int:
        num_places = info.data.get("cells_per_side", 3) ** 2
        if num_places < num_objects:
            raise ValueError(
                f"{num_objects} objects need as many places, and there are {num_places}. "
                "Lower `num_objects` or set `cells_per_side` to 3"
            )
        for key in ("shapes", "colors"):
            if len(names := info.data.get(key, PLACES)) < num_objects:
                raise ValueError(
                    f"{num_objects} objects need as many different {key}, and `{key}` has "
                    f"{len(names)}. Lower `num_objects` or add {key}"
                )
        return num_objects

    @property
    def places(self) -> Names:
        """Return the names of the grid's cells, in reading order."""
        return CORNERS if self.cells_per_side == 2 else PLACES


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A shape on the grid, and the jitter of its drawing."""

    shape: str
    color: str
    size: Size
    place: str
    jitter: tuple[float, float, float]
    """Shift to the right, shift downwards, enlargement; each from -1 to 1."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn: no two objects share a shape, a colour or a place."""

    objects: tuple[SceneObject, ...]
    """In any order, which changes keep: an index identifies an object."""
    background: str
    shade: RGB
    """Added to the background's red, green and blue."""
    cells_per_side: int
    """Size of the grid."""
    dust_seed: int
    """Seed of faint specks on the background, by which any two pictures differ."""

    @property
    def arrangement(self) -> str:
        """The objects as text: equal for scenes that differ by background or jitter only."""
        parts = (f"{it.size} {it.color} {it.shape}, {it.place}" for it in reading_order(self))
        return "; ".join(parts)

    @property
    def facts(self) -> str:
        """The whole picture as text: equal for scenes that differ by jitter only."""
        return f"{self.arrangement}; {self.background}"

    @property
    def split(self) -> Split:
        """The split of the arrangement; it does not depend on settings or seed."""
        held_out = stable_id("scenes", self.arrangement) % ONE_HELD_OUT_IN == 0
        return "held_out" if held_out else "train"


def reading_order(scene: Scene) -> list[SceneObject]:
    """Return the objects line by line, from left to right."""
    return sorted(scene.objects, key=lambda it: CELLS[it.place])


def seeded(*parts: str | int) -> random.Random:
    """Return a random generator that is seeded by these words and numbers."""
    return random.Random(stable_id("scenes", *map(str, parts)))


def draw_scene(world: SceneWorld, rng: random.Random, split: Split) -> Scene:
    """Return a scene of the split; raise MucoError if the world is so small that the split is empty."""
    for _ in range(MAX_DRAWS):
        scene = _draw_any(world, rng)
        if scene.split == split:
            return scene
    raise MucoError(
        f"scenes: none of {MAX_DRAWS} scenes drawn belongs to the {split} split: too few can be made of "
        f"{len(world.shapes)} shapes and {len(world.colors)} colors, {world.num_objects} at a time. "
        "Add shapes or colors."
    )


def _draw_any(world: SceneWorld, rng: random.Random) -> Scene:
    count = world.num_objects
    traits = zip(
        rng.sample(world.shapes, count),
        rng.sample(world.colors, count),
        rng.choices(SIZES, k=count),
        rng.sample(world.places, count),
        strict=True,
    )
    objects = tuple(SceneObject(*trait, jitter=_jitter(rng)) for trait in traits)
    return Scene(
        objects, rng.choice(world.backgrounds), _shade(rng), world.cells_per_side, rng.getrandbits(32)
    )


def _jitter(rng: random.Random) -> tuple[float, float, float]:
    return rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(-1, 1)


def _shade(rng: random.Random) -> RGB:
    return rng.randint(-5, 5), rng.randint(-5, 5), rng.randint(-5, 5)


def drawn_again(scene: Scene, world: SceneWorld, rng: random.Random) -> Scene:
    """Return the same objects on another background, with other jitter."""
    objects = tuple(replace(it, jitter=_jitter(rng)) for it in scene.objects)
    others = [name for name in world.backgrounds if name != scene.background]
    return Scene(objects, rng.choice(others), _shade(rng), scene.cells_per_side, rng.getrandbits(32))
