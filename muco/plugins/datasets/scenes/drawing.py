"""Draw a scene. Every shape is one polygon, drawn at three times the size and averaged down."""

from __future__ import annotations

import io
import random
from math import cos, pi, sin, tau

from PIL import Image, ImageDraw

from muco.core.image import EncodedImage
from muco.plugins.datasets.scenes.world import BACKGROUND_RGB, CELLS, COLOR_RGB, Scene, SceneObject

Point = tuple[float, float]

RADIUS = {"small": 0.28, "large": 0.45}
"""In cells."""
SUPERSAMPLING = 3
NUM_SPECKS = 6


def _arc(radius: float, start: float, end: float, *, x: float = 0.0, steps: int = 36) -> list[Point]:
    angles = [start + (end - start) * step / steps for step in range(steps + 1)]
    return [(x + radius * cos(angle), radius * sin(angle)) for angle in angles]


def _star() -> list[Point]:
    radii = [1.0, 0.42] * 5
    angles = [-pi / 2 + pi / 5 * step for step in range(10)]
    return [(radius * cos(angle), radius * sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _heart(steps: int = 36) -> list[Point]:
    angles = [tau * step / steps for step in range(steps)]
    return [(sin(t) ** 3, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 17) for t in angles]


POLYGONS: dict[str, list[Point]] = {
    "circle": _arc(0.95, 0, tau),
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0, -0.92), (1, 0.82), (-1, 0.82)],
    "star": _star(),
    "diamond": [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)],
    "cross": [
        *[(-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32)],
        *[(0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32)],
    ],
    "heart": _heart(),
    "arrow": [(0, -1), (0.9, 0), (0.34, 0), (0.34, 1), (-0.34, 1), (-0.34, 0), (-0.9, 0)],
    "moon": _arc(1, pi / 4, tau - pi / 4) + _arc(0.73, tau - 0.42 * pi, 0.42 * pi, x=0.5),
    "ring": _arc(1, 0, tau) + _arc(0.52, tau, 0),
}
"""Outlines between -1 and 1, y downwards."""


def draw_image(scene: Scene, size_pixels: int) -> EncodedImage:
    """Return the picture as a square PNG."""
    return _encode(_pixels(scene, size_pixels))


def draw_part(scene: Scene, subject: int, size_pixels: int) -> EncodedImage:
    """Return the grid cell of object `subject`, enlarged to the size of the picture."""
    box = cell_box(scene.objects[subject].place, scene.cells_per_side, size_pixels)
    part = _pixels(scene, size_pixels).crop(box)
    return _encode(part.resize((size_pixels, size_pixels), Image.Resampling.BICUBIC))


def cell_box(place: str, cells_per_side: int, size_pixels: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a cell, in whole pixels."""
    row, column = cell_of(place, cells_per_side)
    left, top, right, bottom = (
        round(size_pixels * border / cells_per_side) for border in (column, row, column + 1, row + 1)
    )
    return left, top, right, bottom


def cell_of(place: str, cells_per_side: int) -> tuple[int, int]:
    """Return row and column of a cell."""
    row, column = CELLS[place]
    return (row, column) if cells_per_side == 3 else (row // 2, column // 2)


def _pixels(scene: Scene, size_pixels: int) -> Image.Image:
    ground = tuple(a + b for a, b in zip(BACKGROUND_RGB[scene.background], scene.shade, strict=True))
    large = size_pixels * SUPERSAMPLING
    image = Image.new("RGB", (large, large), ground)
    pen = ImageDraw.Draw(image)
    for left, top, lighter in _specks(scene, size_pixels):
        box = (left, top, left + SUPERSAMPLING - 1, top + SUPERSAMPLING - 1)
        pen.rectangle(box, fill=tuple(value + lighter for value in ground))
    for it in scene.objects:
        pen.polygon(_outline(it, scene.cells_per_side, large), fill=COLOR_RGB[it.color])
    return image.reduce(SUPERSAMPLING)


def _specks(scene: Scene, size_pixels: int) -> list[tuple[int, int, int]]:
    draw = random.Random(scene.dust_seed).random

    def border() -> int:
        return int(draw() * size_pixels) * SUPERSAMPLING

    return [(border(), border(), 6 if draw() < 0.5 else -6) for _ in range(NUM_SPECKS)]


def _outline(it: SceneObject, cells_per_side: int, size: float) -> list[Point]:
    """Return the polygon in pixels; jitter keeps it in its cell."""
    right, down, larger = it.jitter
    radius = RADIUS[it.size] * (1 + 0.05 * larger)
    slack = min(0.04, 0.49 - radius)
    row, column = cell_of(it.place, cells_per_side)
    cell = size / cells_per_side
    x = (column + 0.5 + slack * right) * cell
    y = (row + 0.5 + slack * down) * cell
    return [(x + radius * cell * dx, y + radius * cell * dy) for dx, dy in POLYGONS[it.shape]]


def _encode(image: Image.Image) -> EncodedImage:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return EncodedImage(file.getvalue())
