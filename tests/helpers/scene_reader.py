"""Reads a drawn scene back from its pixels and its words, by other means than those that made it."""

import io
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from muco.plugins.datasets.scenes.drawing import BACKGROUND_RGB, COLOR_RGB, POLYGONS

GRID = [
    ["top left", "top", "top right"],
    ["left", "center", "right"],
    ["bottom left", "bottom", "bottom right"],
]
CAPTION_OBJECT = re.compile(
    r"an? (small|large) (\w+) (\w+) (?:at|in) the ((?:top|bottom)(?: left| right)?|left|right|center)"
)
REPHRASED_OBJECT = re.compile(
    r"(?:at|in) the ((?:top|bottom)(?: left| right)?|left|right|center) an? (\w+) that is (\w+) and (\w+)"
)


@dataclass(frozen=True)
class Facts:
    objects: frozenset[tuple[str, str, str, str]]
    """(size, colour, shape, place)."""
    background: str

    def num_differences(self, other: "Facts") -> int:
        """How many objects, background included, the other does not have."""
        return len(self.objects - other.objects) + (self.background != other.background)


def read_caption(text: str) -> Facts:
    head, background = re.fullmatch(r"(.*) on an? (.*) background", text).groups()
    objects = CAPTION_OBJECT.findall(head)
    assert len(objects) == 1 + len(re.findall(r", | and ", head))
    return Facts(frozenset(objects), background)


def read_rephrased(text: str) -> Facts:
    background, tail = re.fullmatch(r"on an? (.*) background: (.*)", text).groups()
    objects = REPHRASED_OBJECT.findall(tail)
    assert len(objects) == 1 + tail.count(", ")
    return Facts(frozenset((size, color, shape, at) for at, shape, color, size in objects), background)


def pixels(image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB")).astype(int)


def read_image(image) -> Facts:
    picture = pixels(image)
    ground = np.median([picture[0, 0], picture[0, -1], picture[-1, 0], picture[-1, -1]], axis=0)
    objects = []
    for row, places in enumerate(GRID):
        for column, place in enumerate(places):
            found = _read_cell(cell(picture, row, column), ground)
            if found:
                objects.append((*found, place))
    return Facts(frozenset(objects), _nearest(ground, BACKGROUND_RGB))


def cell(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    top, bottom, left, right = (
        round(len(picture) * third / 3) for third in (row, row + 1, column, column + 1)
    )
    return picture[top:bottom, left:right]


def _read_cell(part: np.ndarray, ground: np.ndarray) -> tuple[str, str, str] | None:
    colors = {name: count for name, rgb in COLOR_RGB.items() if (count := (part == rgb).all(-1).sum()) > 5}
    if not colors:
        return None
    (color,) = colors
    axis = np.array(COLOR_RGB[color]) - ground
    cover = ((part - ground) @ axis / (axis @ axis)).clip(0, 1)
    rows, columns = ((cover > 0.5).any(side).nonzero()[0] for side in (1, 0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    size = "large" if max(height, width) > 0.65 * len(part) else "small"
    seen = cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    errors = {shape: np.abs(seen - _template(shape, height, width)).mean() for shape in POLYGONS}
    return size, color, min(errors, key=errors.get)


def _template(shape: str, height: int, width: int) -> np.ndarray:
    """Return the shape stretched to a box; a stretched square would look like any box."""
    points = np.array(POLYGONS[shape], dtype=float)
    low, high = points.min(0), points.max(0)
    fit = np.array([width, height]) / (high - low)
    if fit.max() > 1.25 * fit.min():
        return np.full((height, width), 9.0)
    image = Image.new("L", (width * 8, height * 8))
    ImageDraw.Draw(image).polygon([tuple(xy) for xy in (points - low) * fit * 8], fill=255)
    return np.asarray(image.reduce(8)) / 255


def _nearest(rgb: np.ndarray, names: dict) -> str:
    return min(names, key=lambda name: np.abs(rgb - names[name]).sum())
