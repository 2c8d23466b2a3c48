"""Where shards that a recipe makes on first use are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from muco.core.component import ComponentConfig
from muco.core.sample import Sample
from muco.core.source import Source
from muco.data.format import FORMAT_VERSION
from muco.data.write import write_shards

Progress = Callable[[Iterable[Sample], int], Iterable[Sample]]
"""Shows that samples go by: (samples, their number) -> the same samples."""


def cache_folder() -> Path:
    """Return `$MUCO_CACHE`, or the user's cache folder for muco."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("MUCO_CACHE") or user_cache_path("muco"))


def describe(name: str, config: ComponentConfig, source: Source) -> dict[str, Any]:
    """Return what made a source's shards: two that are described alike hold the same samples."""
    return {
        "source": name,
        "settings": config.model_dump(mode="json"),
        "source_version": source.version,
        "format_version": FORMAT_VERSION,
    }


def cached_shards(name: str, config: ComponentConfig, source: Source, progress: Progress) -> Path:
    """Return the folder of the source's shards, made now unless it was made before.

    Args:
        name: the source's name in the registry.
        config: its settings; they and the source's version decide which shards are the same.
        source: yields the samples when they are needed.
        progress: wraps the samples while they are written.
    """
    about = describe(name, config, source)
    key = blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()
    folder = cache_folder() / "shards" / f"{name}-{key}"
    if not folder.is_dir():
        write_shards(progress(source.samples(), len(source)), folder, about=about)
    return folder
