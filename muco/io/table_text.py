"""Texts, lists and hard negatives as the public tables write them."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Content
from muco.core.video import Visual

IMAGE_TOKEN = "<|image_1|>"
"""Marks the image in the texts of MMEB and M3T."""

ReadImage = Callable[[Any], EncodedImage]
"""Return the image for the value of an image column, usually a name."""


def is_missing(value: Any) -> bool:
    """Return whether a value stands for none: null or NaN, which pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: Any, what: str) -> str:
    """Return a text, or a number as text, empty for null and NaN; raise DataError, of `what`, for others."""
    if is_missing(value):
        return ""
    is_finite = isinstance(value, float) and math.isfinite(value)
    if is_finite or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{what} is a {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{what} is not valid Unicode") from None
    return value


def without_image_token(text: str) -> str:
    """Return the text without image token, the white space after it, and the text's last line break.

    The backbone decides where an image stands in a prompt, and what ends the prompt.
    """
    for token in (f"{IMAGE_TOKEN}\n", f"{IMAGE_TOKEN} ", IMAGE_TOKEN):
        text = text.replace(token, "")
    return text.removesuffix("\n")


def content_of(text: str, visuals: Sequence[Visual], *, what: str, caption: str = "") -> Content:
    """Return a content without image token; raise DataError, of `what`, for a token without an image."""
    if IMAGE_TOKEN in text and not visuals:
        raise DataError(f"the {what}'s text holds {IMAGE_TOKEN} but no image is named")
    return Content(without_image_token(text), tuple(visuals), caption if visuals else "")


def parsed_list(text: str) -> list[Any] | None:
    """Return the list in a text, JSON or a Python literal, parsed as data; None if it is another text."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return value if isinstance(value, list) else None
    return None


def text_list(value: Any, what: str) -> list[str]:
    """Return the texts of a list, of a list written as a text, or the one text; `what` names it in errors.

    A text that begins with a bracket and is no list is a text: `[Music] which song?`. Null and empty text
    give an empty list. Raise DataError for another type, or a list of texts (`['`) that cannot be parsed.
    """
    if isinstance(value, str):
        items = parsed_list(value)
        if items is None and re.match(r"\s*\[\s*['\"]", value):
            raise DataError(f"{what} is no list that can be parsed: {value[:40]!r}")
        value = value if items is None else items
    if not isinstance(value, list | tuple):
        text = text_of(value, what)
        return [text] if text else []
    return [text_of(item, what) for item in cast(Sequence[Any], value)]


def negatives_of(texts: Sequence[str], images: Sequence[Any], read: ReadImage) -> list[Content]:
    """Return the hard negatives of a list of texts and a list of images.

    The last image is used for further texts. A negative without text and image is left out.
    """
    negatives: list[Content] = []
    for index in range(max(len(texts), len(images))):
        text = texts[index] if index < len(texts) else ""
        image = images[min(index, len(images) - 1)] if images else ""
        negatives.append(content_of(text, (read(image),) if image else (), what="hard negative"))
    return [negative for negative in negatives if negative]
