"""What a caller may embed, as contents: text, images in memory or on disk, both, and videos as frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from muco.core.component_ref import is_mapping
from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Content
from muco.core.video import Video, Visual
from muco.io.pil_images import encoded_image
from muco.io.table_text import text_of
from muco.io.untrusted import read_file

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike = Path | bytes | Image | NDArray[np.uint8] | EncodedImage
    """A file, the bytes of a file, a PIL image, or pixels: uint8 [height, width, 3]."""
    Item = str | ImageLike | Content | Mapping[str, Any]
    """A text; an image; or a mapping of `text`, `image`, `images`, and `video`: a list of frames."""

_KEYS = ("text", "image", "images", "video")


def content_of(item: Item, *, instruction: str | None = None) -> Content:
    """Return what an item says.

    Transparent images are laid on white, 16-bit grey is scaled to 8 bits, and the EXIF orientation is
    applied. Of an animation, the first frame is read.

    Args:
        item: see `Item`. A `str` is always text; a path of an image is a `Path`.
        instruction: is put before the text as it is; end it with a space or a line break.

    Raises:
        TypeError: the item is none of those.
        ValueError: a mapping has another key, or the item has neither text nor image.
        DataError: an image is missing or cannot be read, or the text is not valid Unicode.
    """
    text, visuals = _parts_of(item)
    if not (text or visuals):
        raise ValueError("an item with neither text nor image; leave it out")
    return Content(text_of((instruction or "") + text, "the text"), visuals)


def image_of(image: ImageLike) -> EncodedImage:
    """Return an image as `EncodedImage.faithful` shows it; raises as `content_of` does."""
    if isinstance(image, EncodedImage):
        return image
    if isinstance(image, Path):
        try:
            return EncodedImage(read_file(image)).faithful()
        except OSError as error:
            raise DataError(f"image {image}: {error.strerror or error}") from error
        except DataError as error:
            raise DataError(f"image {image}: {error}") from None
    if isinstance(image, bytes):
        return EncodedImage(image).faithful()
    return encoded_image(_pil_image(image))


def is_many(inputs: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether inputs are a list of items and not one item."""
    return isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes | bytearray | memoryview)


def _parts_of(item: Any) -> tuple[str, tuple[Visual, ...]]:
    if isinstance(item, Content):
        return item.text, item.images
    if isinstance(item, str):
        return item, ()
    return _parts_of_mapping(item) if is_mapping(item) else ("", (image_of(item),))


def _parts_of_mapping(item: Mapping[str, Any]) -> tuple[str, tuple[Visual, ...]]:
    unknown = [key for key in item if key not in _KEYS]
    if unknown:
        raise ValueError(f"an item has no key {unknown[0]!r}; it may have {', '.join(_KEYS)}")
    text = item.get("text") or ""
    if not isinstance(text, str):
        raise TypeError(f"the text of an item is {type(text).__name__}; give a str")
    visuals: list[Visual] = [image_of(image) for image in (item.get("image"),) if image is not None]
    visuals += map(image_of, _list_at("images", item))
    video = item.get("video")
    if isinstance(video, Video):
        visuals.append(video)
    elif frames := _list_at("video", item):
        visuals.append(Video(tuple(map(image_of, frames))))
    return text, tuple(visuals)


def _list_at(key: str, item: Mapping[str, Any]) -> list[Any]:
    """Return the images at a key, which may be a list or an array with a row for each; none without it."""
    images = item.get(key)
    if images is None:
        return []
    if not (is_many(images) or (isinstance(images, np.ndarray) and images.ndim == 4)):
        what = "frames" if key == "video" else "images"
        raise TypeError(f"{key!r} of an item is {type(images).__name__}; give a list of {what}")
    return list(images)


def _pil_image(image: Any) -> Image:
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str):
        raise TypeError(f"an image that is a str, {image[:80]!r}; a file is given as pathlib.Path")
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"an item of type {type(image).__name__}; give a str, a Path, bytes, a PIL image, a uint8 array "
            "or a dict of these; several items are a list"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        shape = list(image.shape)
        raise ValueError(
            f"an array of {image.dtype} {shape}; pixels are uint8 [height, width, 3]; give several as a list"
        )
    return Image.fromarray(image)
