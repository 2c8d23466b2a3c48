"""MMEB's texts: what becomes of the image token, and how the second layout joins instruction and text.

Training texts go through `muco.io.table_text.content_of`, test texts through `strip_image_token`.
"""

from __future__ import annotations

import re
from typing import Literal

from muco.io.table_text import IMAGE_TOKEN

Shape = Literal["cls", "qa", "i2t", "t2i", "i2i_vg"]
"""How a data set of the second layout joins instruction and text: classification, question answering, image
to text, text to image, and image to image with visual grounding."""

_TOKEN_WITHOUT_IMAGE = ("WebQA",)
"""Training data whose queries hold the image token even if they have no image."""


def without_stray_token(subset: str, text: str) -> str:
    """Return a training query without image, without the image token that some data sets leave in it.

    The line break behind the token stays, as in the public code.
    """
    return text.replace(IMAGE_TOKEN, "") if subset in _TOKEN_WITHOUT_IMAGE else text


def strip_image_token(text: str, *, has_image: bool = True) -> str:
    """Return a test text without image token, and without line breaks at its ends.

    A content's images come first, and the chat template ends a text with one line break. The result is what
    public MMEB code renders; there, a text without image keeps the line break that it begins with.
    """
    has_token = IMAGE_TOKEN in text
    text = re.sub(r"\n+", "\n", text.replace(IMAGE_TOKEN, ""))
    if not has_image:
        return text.removesuffix("\n")
    text = text.strip("\n")
    return text.lstrip(" ").lstrip("\n") if has_token else text


def query_text(shape: Shape, instruction: str, text: str, *, has_image: bool) -> str:
    """Return a query of the second layout."""
    if shape == "t2i":
        return strip_image_token(f"{instruction} {text}\n", has_image=has_image)
    stripped = instruction.replace(IMAGE_TOKEN, "")
    if shape in ("qa", "i2i_vg"):
        stripped = "\n" + stripped.strip()
    joined = f"{stripped} {text}" if text else stripped
    joined = f"{IMAGE_TOKEN} {joined}".replace(" \n", "\n")
    return strip_image_token(f"{joined}\n", has_image=has_image)


def target_text(shape: Shape, instruction: str, text: str) -> str:
    """Return a candidate of the second layout; without an image it is the text, without instruction."""
    if shape in ("cls", "qa", "i2t"):
        return strip_image_token(text)
    joined = f"{instruction.replace(IMAGE_TOKEN, '').strip()} {text}" if text else instruction
    return strip_image_token(f"{IMAGE_TOKEN} {joined}".replace(" \n", "\n"))
