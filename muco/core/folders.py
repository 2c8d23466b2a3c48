"""Where muco keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return `$MUCO_CACHE`, or the user's cache folder for muco."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("MUCO_CACHE") or user_cache_path("muco"))
