"""An image as encoded bytes; it is decoded as late as possible."""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from muco.core.errors import DataError
from muco.core.ids import stable_id

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats that are read. Some other readers of Pillow run programs, such as Ghostscript."""

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of one PNG, JPEG or WebP file."""

    data: bytes

    @cached_property
    def content_id(self) -> int:
        """A stable hash of the bytes."""
        return stable_id(self.data)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, read from the header; raises as `decode` does."""
        with self._open() as image:
            return image.size

    def decode(self) -> Image:
        """Return the image in RGB.

        Raises:
            DataError: the bytes are no image, are cut short, or have more than `MAX_PIXELS` pixels.
        """
        with self._open() as image:
            return image.convert("RGB")

    @contextmanager
    def _open(self) -> Generator[Image]:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(self.data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DataError(f"image of {width} x {height} pixels; at most {MAX_PIXELS:,} are read")
                yield image
        except UnidentifiedImageError:
            raise DataError(f"no PNG, JPEG or WebP image ({len(self.data)} bytes)") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"broken image: {error}") from error
