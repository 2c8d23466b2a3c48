"""Show text of any origin on a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line break, characters that reorder a line, and halves of a character."""


def printable(text: str) -> str:
    r"""Return the text with control characters as escapes, `\x1b`, so that it cannot steer a terminal."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
