"""MMEB's texts: the image placeholder in them, and how the second layout puts them together."""

from __future__ import annotations

import re
from typing import Literal

IMAGE = "<|image_1|>"
"""Stands for the image; it may stand where there is none."""

Shape = Literal["cls", "qa", "i2t", "t2i", "i2i_vg"]
"""How a data set of the second layout puts instruction and text together: classification, question
answering, image to text, text to image, and image to image with visual grounding."""


def said(text: str) -> str:
    """Return a text without placeholder and without the line breaks around it.

    A content's images come first, and the chat template closes a text with one line break: together they
    render what public MMEB code renders.
    """
    had_image = IMAGE in text
    text = re.sub(r"\n+", "\n", text.replace(IMAGE, "")).strip("\n")
    return text.lstrip(" ").lstrip("\n") if had_image else text


def query_text(shape: Shape, instruction: str, text: str) -> str:
    """Return a query of the second layout."""
    if shape == "t2i":
        return said(f"{instruction} {text}\n")
    stripped = instruction.replace(IMAGE, "")
    if shape in ("qa", "i2i_vg"):
        stripped = "\n" + stripped.strip()
    joined = f"{stripped} {text}" if text else stripped
    return said(f"{IMAGE} {joined}".replace(" \n", "\n") + "\n")


def target_text(shape: Shape, instruction: str, text: str) -> str:
    """Return a candidate of the second layout; one without an image is its text alone."""
    if shape in ("cls", "qa", "i2t"):
        return said(text)
    joined = f"{instruction.replace(IMAGE, '').strip()} {text}" if text else instruction
    return said(f"{IMAGE} {joined}".replace(" \n", "\n"))
