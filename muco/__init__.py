"""muco: universal multimodal embedding models by multi-turn contrastive learning."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Embedder": "muco.embedder.embedder",
    "MucoError": "muco.core.errors",
    "evaluate": "muco.commands.api",
    "load": "muco.embedder.load",
    "load_recipe": "muco.config.load",
    "run": "muco.commands.run",
    "train": "muco.commands.api",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'muco' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
