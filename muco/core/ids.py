"""Stable 64-bit ids of names and contents, which tensors can carry between ranks."""

from __future__ import annotations

from hashlib import blake2b


def stable_id(*parts: str | bytes) -> int:
    """Hash the parts to a signed 64-bit integer, equal in every process and on every machine.

    Args:
        parts: text or bytes. Boundaries count: ("ab", "c") and ("a", "bc") differ.
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little", signed=True)


def url_name(url: str) -> str:
    """Return the file name for the content of a URL: 32 hex digits."""
    return blake2b(url.encode(), digest_size=16).hexdigest()
