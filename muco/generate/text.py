"""Texts that a model wrote, cleaned: they are data, and nothing in them may steer a terminal or a page."""

from __future__ import annotations

import re
from functools import lru_cache

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""Control and invisible characters but tab and line break, and halves of a character."""


_THINKING = re.compile(r"^.*</think>", re.DOTALL)


def without_thinking(text: str) -> str:
    """Return what a model answered after it thought."""
    return _THINKING.sub("", text)


def clean(text: str) -> str:
    """Return the text without control characters, and without white space around it."""
    return _CONTROL.sub("", text).strip()


def one_line(text: str) -> str:
    """Return the cleaned text with single spaces for all white space."""
    return " ".join(clean(text).split())


@lru_cache(maxsize=256)  # several filters read the words of one text
def words(text: str) -> tuple[str, ...]:
    """Return the words of a text in small letters, without punctuation."""
    return tuple(re.findall(r"\w+", text.lower()))
