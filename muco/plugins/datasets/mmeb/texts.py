"""MMEB's texts: the image's token in them, and how the second layout puts them together."""

from __future__ import annotations

import re
from typing import Literal

from muco.io.table_text import IMAGE_TOKEN

Shape = Literal["cls", "qa", "i2t", "t2i", "i2i_vg"]
"""How a data set of the second layout puts instruction and text together: classification, question
answering, image to text, text to image, and image to image with visual grounding."""


def strip_image_token(text: str) -> str:
    """Return a text without image token and without the line breaks around it.

    A content's images come first, and the chat template closes a text with one line break: together they
    render what public MMEB code renders.
    """
    had_image = IMAGE_TOKEN in text
    text = re.sub(r"\n+", "\n", text.replace(IMAGE_TOKEN, "")).strip("\n")
    return text.lstrip(" ").lstrip("\n") if had_image else text


def query_text(shape: Shape, instruction: str, text: str) -> str:
    """Return a query of the second layout."""
    if shape == "t2i":
        return strip_image_token(f"{instruction} {text}\n")
    stripped = instruction.replace(IMAGE_TOKEN, "")
    if shape in ("qa", "i2i_vg"):
        stripped = "\n" + stripped.strip()
    joined = f"{stripped} {text}" if text else stripped
    return strip_image_token(f"{IMAGE_TOKEN} {joined}".replace(" \n", "\n") + "\n")


def target_text(shape: Shape, instruction: str, text: str) -> str:
    """Return a candidate of the second layout; one without an image is its text alone."""
    if shape in ("cls", "qa", "i2t"):
        return strip_image_token(text)
    joined = f"{instruction.replace(IMAGE_TOKEN, '').strip()} {text}" if text else instruction
    return strip_image_token(f"{IMAGE_TOKEN} {joined}".replace(" \n", "\n"))
