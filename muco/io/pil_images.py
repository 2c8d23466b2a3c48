"""Images of Pillow as encoded images."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from muco.core.errors import library_errors
from muco.core.image import EncodedImage

if TYPE_CHECKING:
    from PIL.Image import Image

_PNG_MODES = {mode: mode for mode in ("1", "L", "LA", "P", "RGBA", "I;16")}
_PNG_MODES |= {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}
"""Mode of an image -> the mode that holds all of it in a PNG; RGB for other modes."""


def encoded_image(image: Image) -> EncodedImage:
    """Return an image of any mode without loss, RGB as a BMP; raise DataError if it cannot be read."""
    from PIL import ImageOps

    buffer = io.BytesIO()
    with library_errors("an image of Pillow that cannot be read"):
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "RGB" and "transparency" not in upright.info:
            upright.save(buffer, "BMP")
            return EncodedImage(buffer.getvalue())
        if upright.mode.startswith("I"):  # Pillow converts the other modes of 16 bits by way of I
            upright = upright.convert("I").convert("I;16")
        upright = upright.convert(_PNG_MODES.get(upright.mode, "RGB"))
        upright.save(buffer, "PNG", compress_level=1)
    return EncodedImage(buffer.getvalue()).faithful()
