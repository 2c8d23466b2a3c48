"""An image as it lies in a shard: encoded bytes, decoded as late as possible."""

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
"""What Pillow may take the bytes for: others of its readers run programs, Ghostscript for one."""

MAX_PIXELS = 100_000_000
"""Images with more pixels than this are refused before they are decoded."""


@dataclass(frozen=True)
class EncodedImage:
    """One PNG, JPEG or WebP file, in memory."""

    data: bytes

    @cached_property
    def content_id(self) -> int:
        """The stable hash of the bytes."""
        return stable_id(self.data)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the header; raises as `decode` does."""
        with self._open() as image:
            return image.size

    def decode(self) -> Image:
        """Return the image in RGB.

        Raises:
            DataError: the bytes are no image, are cut short, or hold over `MAX_PIXELS` pixels.
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
