"""The image of a request, as it is sent."""

from __future__ import annotations

import base64
import io
from math import sqrt

from PIL.Image import Image

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.generate.settings import ImageSettings
from muco.io.image_files import ImageFiles

_KINDS = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"))
_URLS = ("http://", "https://")


def image_url(name: str, images: ImageFiles, settings: ImageSettings) -> str:
    """Return the URL of an image: its own, or one that holds it.

    A PNG or JPEG within the bound is sent as it is; others as JPEG. Raise DataError if the image is missing
    or broken, or has no URL.
    """
    if settings.send == "url":
        if not name.startswith(_URLS):
            raise DataError(f"image {name}: no URL, which images.send: url needs")
        return name
    image = images.image(name)
    picture = image.decode()  # a broken image is not sent
    kind = next((kind for magic, kind in _KINDS if image.data.startswith(magic)), "")
    if picture.width * picture.height > settings.max_pixels or not kind:
        kind, image = "jpeg", _reduced(picture, settings)
    return f"data:image/{kind};base64,{base64.b64encode(image.data).decode()}"


def _reduced(picture: Image, settings: ImageSettings) -> EncodedImage:
    scale = min(1.0, sqrt(settings.max_pixels / (picture.width * picture.height)))
    size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
    buffer = io.BytesIO()
    (picture if scale == 1.0 else picture.resize(size)).save(buffer, "JPEG", quality=settings.quality)
    return EncodedImage(buffer.getvalue())
