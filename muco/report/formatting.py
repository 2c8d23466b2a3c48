"""Numbers, names and plain data as people read them."""

from __future__ import annotations

import json
import re
from typing import Any

from markupsafe import Markup, escape


def count(number: float) -> str:
    """Write a count: 268,800."""
    return f"{round(number):,}"


def short(number: float) -> str:
    """Write any number in about three digits, without spare zeros: 0.5, 1,280, 5e-5."""
    if abs(number) >= 1000 and abs(number) < 1e9:
        return count(number)
    text = f"{number:.3g}" if abs(number) >= 0.01 or number == 0 else f"{number:.2e}"
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        return text
    tidy = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{tidy}e{int(exponent)}"


def measured(number: float) -> str:
    """Write a measurement in three digits, zeros kept, so that a column lines up: 0.820."""
    return f"{number:#.3g}".rstrip(".") if 0.01 <= abs(number) < 999.5 else short(number)


def percent(share: float) -> str:
    """Write a share as a percentage with one decimal, without the sign: 71.2."""
    return f"{100 * share:.1f}"


def bar_percent(share: float) -> str:
    """Write a share as the length of a bar: a percentage held within 0 to 100."""
    return percent(min(max(share, 0.0), 1.0))


def ratio(value: float) -> str:
    """Write how many times as much: 8.6, or 1,280."""
    return f"{value:.1f}" if value < 100 else count(value)


def duration(seconds: float) -> str:
    """Write a time in its two largest units: 4 min 12 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rest, parts = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, size)
        if number or parts:
            parts.append((number, unit))
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)


def title(name: str) -> str:
    """Write a name from the data as a heading: Classification, VQA."""
    spaced = re.sub(r"[_\s]+", " ", name).strip()
    return spaced.upper() if spaced.lower() in {"vqa", "ocr", "ood"} else spaced[:1].upper() + spaced[1:]


def clipped(text: str, most: int = 400) -> str:
    """Cut a long text at a word, with an ellipsis."""
    if len(text) <= most:
        return text
    return text[:most].rsplit(maxsplit=1)[0] + "\N{HORIZONTAL ELLIPSIS}"


def plain(value: Any) -> str:
    """Write a value of JSON on one line."""
    if value is None:
        return "not recorded"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def breakable(name: str) -> Markup:
    """Let a long name break after its underscores."""
    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))
