"""Write the recipe of `muco init`: sizes, steps and limits that fit the data and the machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np

from muco.core.image import EncodedImage
from muco.io.templates import text_templates

Machine = Literal["cpu", "gpu"]

_TOKEN_PIXELS = 28 * 28
"""Pixels of a token of Qwen2-VL."""
_MIN_TOKENS = 4
_MAX_TOKENS: dict[Machine, int] = {"cpu": 16, "gpu": 512}
_BATCH_SIZE: dict[Machine, int] = {"cpu": 32, "gpu": 64}
_EPOCHS: dict[Machine, int] = {"cpu": 30, "gpu": 3}
_STEPS: dict[Machine, tuple[int, int]] = {"cpu": (60, 600), "gpu": (50, 2000)}
"""Fewest and most steps."""


@dataclass(frozen=True)
class ImageSizes:
    """What some images are like."""

    width: int
    height: int
    """Medians, in pixels."""
    mean: float
    std: float
    """Of all channels, where white is 1."""

    def __str__(self) -> str:
        return f"{self.width} x {self.height} pixels"


@dataclass(frozen=True)
class OwnRecipe:
    """What a recipe is written from."""

    name: str
    title: str
    """The data, for the first line."""
    made_from: str
    """What `muco init` was given; empty to leave that out."""
    recipe: str
    train: str
    held_out: str | None
    images: str | None
    columns: Mapping[str, str]
    sizes: ImageSizes | None
    """None if there are no images."""
    symmetric: bool
    num_samples: int
    machine: Machine

    def text(self) -> str:
        """Return the recipe."""
        batch_size, num_steps = _batch_and_steps(self.num_samples, self.machine)
        least, most = _pixel_limits(self.sizes, self.machine)
        template = text_templates("commands/templates").get_template("own_data.yaml")
        return template.render(
            name=json.dumps(self.name) if self.name.isdigit() else self.name,
            title=" ".join(self.title.split()),
            made=" ".join(self.made_from.split()),
            recipe=self.recipe,
            train=_scalar(self.train),
            held_out=_scalar(self.held_out),
            images=_scalar(self.images),
            columns={part: _scalar(column) for part, column in self.columns.items()},
            gpu=self.machine == "gpu",
            size=self.sizes,
            image_mean=round(self.sizes.mean, 2) if self.sizes else 0.5,
            image_std=round(max(self.sizes.std, 0.05), 2) if self.sizes else 0.25,
            min_pixels=least,
            max_pixels=most,
            symmetric=self.symmetric,
            batch_size=batch_size,
            num_steps=num_steps,
            num_samples=self.num_samples,
            num_epochs=max(1, round(num_steps * batch_size / self.num_samples)),
        )


def measure_images(images: Iterable[EncodedImage]) -> ImageSizes | None:
    """Return medians and colours of some images; None if there are none."""
    sizes: list[tuple[int, int]] = []
    pixels: list[np.ndarray] = []
    for each in images:
        image = each.faithful().decode()
        sizes.append(image.size)
        pixels.append(np.asarray(image.resize((32, 32)), dtype=np.float64) / 255)
    if not sizes:
        return None
    colours = np.stack(pixels)
    widths, heights = zip(*sizes, strict=True)
    return ImageSizes(int(median(widths)), int(median(heights)), float(colours.mean()), float(colours.std()))


def _pixel_limits(sizes: ImageSizes | None, machine: Machine) -> tuple[int, int]:
    """Return limits that keep the images' own size where the machine can: in whole tokens."""
    tokens = _MAX_TOKENS[machine] if sizes is None else sizes.width * sizes.height // _TOKEN_PIXELS
    most = min(max(tokens, _MIN_TOKENS), _MAX_TOKENS[machine])
    return _MIN_TOKENS * _TOKEN_PIXELS, most * _TOKEN_PIXELS


def _batch_and_steps(num_samples: int, machine: Machine) -> tuple[int, int]:
    """Return batch size and steps; no epoch ends in a batch of one sample."""
    size = min(_BATCH_SIZE[machine], num_samples)
    while size > 2 and num_samples % size == 1:
        size -= 1
    fewest, most = _STEPS[machine]
    return size, min(max(math.ceil(_EPOCHS[machine] * num_samples / size), fewest), most)


def _scalar(text: str | Path | None) -> str | None:
    """Return a text as YAML: plain if it reads the same, else quoted."""
    if text is None:
        return None
    plain = str(text)
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "~"}
    safe = plain.replace("/", "").replace("_", "").replace("-", "").replace(".", "").replace(" ", "")
    if safe.isalnum() and safe[0].isalpha() and plain[0].isalpha() and plain == plain.strip():
        return json.dumps(plain) if plain.lower() in words else plain
    return json.dumps(plain, ensure_ascii=False)
