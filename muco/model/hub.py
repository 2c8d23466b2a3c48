"""Models on the hub."""

from __future__ import annotations

from pathlib import Path

from muco.core.errors import MucoError

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
"""What a model folder consists of. No program is among them."""


def is_hub_name(name: str) -> bool:
    """Return whether a name has the form owner/name, and no folder of that owner is there."""
    owner, slash, model = name.partition("/")
    return bool(owner.strip(".~") and slash and model) and "/" not in model and not Path(owner).exists()


def hub_folder(name: str) -> Path:
    """Return the local copy of a model on the hub; it is downloaded on first use.

    Raise MucoError if the hub has no such model or cannot be reached, and there is no copy.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MucoError(
            f"{name}: no such folder, and it cannot be downloaded from the hub: {reason}"
        ) from error
