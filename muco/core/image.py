"""An image as encoded bytes; it is decoded as late as possible."""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from muco.core.errors import DataError
from muco.core.ids import stable_id

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are read. Some other readers of Pillow run programs, such as Ghostscript."""

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""

ImageDecoding = Literal["faithful", "plain"]
"""`faithful`: as viewers show an image; see `EncodedImage.faithful`.
`plain`: Pillow's `convert("RGB")`, as in the public code of the benchmarks: transparency is dropped, 16-bit
grey is clipped, and EXIF orientation is ignored."""

_EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF", b"exif", b"tiff:Orientation")
"""Without one of these there is no EXIF; Pillow would decode a whole PNG to look for it."""
_ORIENTATION = 0x0112
_TRANSPOSES = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation -> the `PIL.Image.Transpose` that undoes it."""
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of one PNG, JPEG, WebP, GIF, BMP or TIFF file. Of an animation, the first frame is read."""

    data: bytes
    file: str = field(default="", compare=False, repr=False)
    """Its name for errors, if known."""

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
        """Return the image in RGB; raise DataError if it is none, broken, or larger than `MAX_PIXELS`."""
        with self._open() as image:
            return _plain(image)

    def faithful(self) -> EncodedImage:
        """Return an image whose `decode` shows what viewers show; this one if it does already.

        Transparency is laid on white, 16-bit grey is scaled to 8 bits, and the EXIF orientation is applied.
        An image that this changes is encoded anew: JPEG as JPEG of quality 95, others as PNG. Raises as
        `decode`.
        """
        with self._open() as image:
            transpose = None if image.format == "TIFF" else _TRANSPOSES.get(self._orientation(image))
            if not (transpose is not None or image.mode.startswith("I") or image.has_transparency_data):
                return self
            kind = "JPEG" if image.format in ("JPEG", "MPO") else "PNG"
            converted = _on_white(image)
            if transpose is not None:
                converted = converted.transpose(transpose)  # type: ignore[arg-type]
            elif converted.tobytes() == _plain(image).tobytes():
                return self
            buffer = io.BytesIO()
            converted.save(buffer, kind, quality=_JPEG_QUALITY)
            return EncodedImage(buffer.getvalue())

    def decoded_as(self, decoding: ImageDecoding) -> EncodedImage:
        """Return an image whose `decode` gives what `decoding` says."""
        return self.faithful() if decoding == "faithful" else self

    def _orientation(self, image: Image) -> int:
        """Return the EXIF orientation; 1, upright, if there is none or it cannot be read."""
        if not any(mark in self.data for mark in _EXIF_MARKS):
            return 1
        try:
            return image.getexif().get(_ORIENTATION, 1)
        except Exception:
            # Viewers show an image whose EXIF is broken.
            return 1

    @contextmanager
    def _open(self) -> Generator[Image]:
        from PIL import Image, UnidentifiedImageError

        name = f"image {self.file}: " if self.file else ""
        try:
            with Image.open(io.BytesIO(self.data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DataError(
                        f"{name}image of {width} x {height} pixels; at most {MAX_PIXELS:,} are read"
                    )
                if image.mode == "P" and image.palette is None:
                    raise DataError(f"{name}broken image: its palette is missing")
                yield image
        except DataError:
            raise
        except UnidentifiedImageError:
            message = f"{name}no PNG, JPEG, WebP, GIF, BMP or TIFF image ({len(self.data)} bytes)"
            raise DataError(message) from None
        except Exception as error:
            # Pillow's readers raise many kinds for broken bytes, AssertionError and struct.error among them.
            raise DataError(f"{name}broken image: {error or type(error).__name__}") from error


def _plain(image: Image) -> Image:
    image.load()
    # Else transformers would whiten the transparent colour of the converted image.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _on_white(image: Image) -> Image:
    """Return the image in RGB, transparent parts on white, 16-bit grey scaled to 8 bits."""
    from PIL import Image

    image.load()
    if image.mode.startswith("I"):
        image = image.convert("I").point([value >> 8 for value in range(2**16)], "L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
