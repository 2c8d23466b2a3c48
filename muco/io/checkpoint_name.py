"""Tell the path of a checkpoint from its name on a hub."""

from __future__ import annotations

from os.path import expanduser
from pathlib import Path

_FOLDERS = ("checkpoints", "data", "models", "runs", "weights")
"""Names of folders; none is taken for an account on a hub."""


def is_missing_path(name: str) -> bool:
    """Return whether a checkpoint's name reads as a path, and nothing is there."""
    path = Path(expanduser(name))
    if path.exists() or ":" in name:
        return False
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return looks_like_path or path.parts[0] in _FOLDERS or (len(path.parts) > 1 and path.parent.is_dir())
