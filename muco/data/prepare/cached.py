"""Shards that a recipe makes on first use, in the cache folder."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path

from muco.core.component import ComponentConfig
from muco.core.source import Source
from muco.data.prepare.convert import Conversion, describe
from muco.data.progress import ShowProgress
from muco.io.cache import cache_errors, cache_folder

_WORKERS = 2
_MANY_RECORDS = 2000
"""From here on, processes save more time than they need to start."""


def cached_shards(name: str, config: ComponentConfig, source: Source, progress: ShowProgress) -> Path:
    """Return the folder of the shards of the source with this name in the registry; make it if missing.

    Name, settings, the source's version and the files that it reads identify the shards.
    """
    folder = cache_folder() / "shards" / f"{name}-{source_fingerprint(name, config, source)}"
    if not folder.is_dir():
        with cache_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        workers = _WORKERS if len(source) >= _MANY_RECORDS else 0
        Conversion(name, config, source, folder).run(workers=workers, progress=progress)
    return folder


def source_fingerprint(name: str, config: ComponentConfig, source: Source) -> str:
    """Return a hash of a source's name, settings, version and the files it reads."""
    text = json.dumps(describe(name, config, source), sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()
