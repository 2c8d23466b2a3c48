"""Texts and hard negatives as the public tables write them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any, cast

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Content

IMAGE_TOKEN = "<|image_1|>"
"""Stands for the image in the texts of MMEB and M3T."""


Read = Callable[[Any], EncodedImage]
"""Makes an image of what a table has for one: a name most often."""


def text_of(value: Any, what: str) -> str:
    """Return a value that must be text; null is empty text.

    Raises:
        DataError: it is something else, or no valid Unicode.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{what} is a {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{what} is not valid Unicode") from None
    return value


def without_token(text: str) -> str:
    """Return the text without the image's token and the white space after it, and without its last
    line end: where an image stands in a prompt, and what closes it, is for the backbone to say.
    """
    for token in (f"{IMAGE_TOKEN}\n", f"{IMAGE_TOKEN} ", IMAGE_TOKEN):
        text = text.replace(token, "")
    return text.removesuffix("\n")


def text_content(text: str, *, has_image: bool, what: str) -> Content:
    """Return a text for an image that stands elsewhere, or for none.

    Raises:
        DataError: the text asks for an image and there is none.
    """
    if IMAGE_TOKEN in text and not has_image:
        raise DataError(f"the {what}'s text holds {IMAGE_TOKEN} but no image is named")
    return Content(without_token(text))


def content_of(text: str, image: Any, read: Read, *, what: str, caption: str = "") -> Content:
    """Return a text and its image.

    Args:
        text: with the token where there is an image, or without.
        image: what a table has for one; empty or null for none.
        read: makes an image of it.
        what: query, target or hard negative, for the message.
        caption: of the image.

    Raises:
        DataError: the text asks for an image and there is none, or it cannot be read.
    """
    words = text_content(text, has_image=bool(image), what=what)
    return Content(words.text, (read(image),), caption) if image else words


def listed(value: Any, what: str) -> list[str]:
    """Return the texts of a list, of a list written as a Python literal, or the one text.

    The literal is parsed as data, never evaluated. Null and empty text are no texts.

    Raises:
        DataError: something else, or a text that begins like a list and is none.
    """
    if value is None or value == "":
        return []
    if isinstance(value, str):
        if not value.startswith("["):
            return [text_of(value, what)]
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise DataError(f"{what} is no list that can be parsed: {str(value)[:40]!r}") from None
    if not isinstance(value, list | tuple):
        raise DataError(f"{what} is a {type(value).__name__}, not a list")
    return [text_of(item, what) for item in cast(Sequence[Any], value)]


def negatives_of(texts: Sequence[str], images: Sequence[Any], read: Read) -> list[Content]:
    """Return the hard negatives of two lists; the last image serves where there are fewer than texts.

    Those without text and image are left out, as the tables fill their columns with empty text.
    """
    found: list[Content] = []
    for place in range(max(len(texts), len(images))):
        text = texts[place] if place < len(texts) else ""
        image = images[min(place, len(images) - 1)] if images else ""
        content = content_of(text, image, read, what="hard negative")
        if content:
            found.append(content)
    return found
