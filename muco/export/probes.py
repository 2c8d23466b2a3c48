"""The inputs with which an exported folder is checked: texts, images, and both, of mixed sizes."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from muco.core.image import EncodedImage
from muco.core.sample import Content

_TEXTS = (
    "a",
    "Which colour is the circle at the top left?",
    "a red square, two blue triangles\nand a <b> that is only text\n",
    "A photo of a dog that runs over wet grass towards the camera while it rains. " * 4,
)
_SIZES = ((64, 64), (97, 61), (60, 180))
"""Width and height in pixels."""


@dataclass(frozen=True)
class Probes:
    """Inputs that are encoded as one batch."""

    kind: str
    contents: tuple[Content, ...]


def make_probes(kinds: set[str]) -> list[Probes]:
    """Return the inputs for a model that takes these kinds; see `Exported.methods`."""
    texts = tuple(Content(text) for text in _TEXTS)
    images = tuple(Content(images=(_picture(*size),)) for size in _SIZES)
    both = tuple(Content(text.text, image.images) for text, image in zip(texts[1:], images, strict=True))
    # A single text: without padding, attention may use another kernel.
    probes = {"text": [texts[1:2], texts], "image": [images], "image+text": [both]}
    chosen = [Probes(kind, batch) for kind in probes if kind in kinds for batch in probes[kind]]
    if "message" in kinds:
        several = Content(_TEXTS[1], tuple(content.images[0] for content in images[:2]))
        chosen.append(Probes("several images", (several, both[1])))
        chosen.append(Probes("mixed", (texts[0], images[1], both[2], texts[3], both[0])))
    return chosen


def _picture(width: int, height: int) -> EncodedImage:
    """Return a PNG of smooth colours with a disc."""
    row, column = np.mgrid[:height, :width]
    disc = (row - height / 2) ** 2 + (column - width / 3) ** 2 < (min(width, height) / 4) ** 2
    channels = (255 * row / height, 255 * column / width, np.where(disc, 220, 60))
    pixels = np.stack(channels, axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return EncodedImage(buffer.getvalue())
