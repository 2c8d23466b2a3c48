"""Stable 64-bit ids of names and contents, which tensors can carry between ranks, and names of files."""

from __future__ import annotations

import re
from hashlib import blake2b

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


def stable_id(*parts: str | bytes) -> int:
    """Hash the parts to a signed 64-bit integer, equal everywhere; ('ab', 'c') and ('a', 'bc') differ."""
    digest = blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little", signed=True)


def url_name(url: str) -> str:
    """Return the file name for the content of a URL: 32 hex digits."""
    return blake2b(url.encode(), digest_size=16).hexdigest()


def check_name(name: str) -> str:
    """Return the name; raise ValueError unless it is the same file name, in the same folder, everywhere."""
    if not re.fullmatch(NAME_PATTERN, name):
        rule = "use at most 128 letters, digits, '.', '_' and '-', and begin with a letter or a digit"
        raise ValueError(f"{rule}: it names files")
    return name
