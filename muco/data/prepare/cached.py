"""Shards that a recipe makes on first use, in the cache folder."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path

from muco.core.component import ComponentConfig
from muco.core.source import Source
from muco.data.prepare.convert import Conversion, describe
from muco.data.progress import ShowProgress
from muco.io.cache import cache_folder


def cached_shards(name: str, config: ComponentConfig, source: Source, progress: ShowProgress) -> Path:
    """Return the folder of the source's shards; make it if it does not exist.

    Args:
        name: the source's name in the registry.
        config: its settings; with the source's version and the files it reads, they identify the shards.
        source: yields the samples when they are needed.
        progress: shows the samples while they are written.
    """
    folder = cache_folder() / "shards" / f"{name}-{source_fingerprint(name, config, source)}"
    if not folder.is_dir():
        Conversion(name, config, source, folder).run(progress=progress)
    return folder


def source_fingerprint(name: str, config: ComponentConfig, source: Source) -> str:
    """Return a hash of a source's name, settings, version and the files it reads."""
    text = json.dumps(describe(name, config, source), sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()
