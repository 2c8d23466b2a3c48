"""Images as data URIs, for pages that are one file."""

from __future__ import annotations

import base64
import io

from muco.core.image import EncodedImage

_MAX_IMAGE_BYTES, _THUMBNAIL_PIXELS = 20_000, 256
_FORMATS = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"RIFF", "webp"))


def data_uri(image: EncodedImage) -> str:
    """Return a small image as it is, others as a thumbnail; raise DataError if the image is broken."""
    kind = next((kind for magic, kind in _FORMATS if image.data.startswith(magic)), "")
    if not kind or len(image.data) > _MAX_IMAGE_BYTES:
        return thumbnail_uri(image, _THUMBNAIL_PIXELS)
    return f"data:image/{kind};base64,{base64.b64encode(image.data).decode()}"


def thumbnail_uri(image: EncodedImage, max_pixels: int) -> str:
    """Return a JPEG of the image as a data URI, its longer side of at most `max_pixels`; see `data_uri`."""
    thumbnail, buffer = image.decode(), io.BytesIO()
    thumbnail.thumbnail((max_pixels, max_pixels))
    thumbnail.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
