"""Show text of any origin, and sizes, on a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line break, characters that reorder a line, and halves of a character."""


def printable(text: str) -> str:
    r"""Return the text with control characters as escapes, `\x1b`, so that it cannot steer a terminal."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def format_size(num_bytes: float) -> str:
    """Return a size in the unit that fits: `1.5 GiB`."""
    size, unit = next((it for it in ((2**30, "GiB"), (2**20, "MiB")) if num_bytes >= it[0]), (2**10, "KiB"))
    return f"{num_bytes / size:,.1f} {unit}"
