"""Write and read model folders: weights, tokenizer and settings for evaluation, export and resuming."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file

from muco.config.recipe import Recipe
from muco.core.encoder import TurnEncoder
from muco.core.errors import DataError
from muco.io.json_text import parse_json
from muco.model.build import with_pooler

METADATA_FILE = "muco.json"
"""A folder with this file is a model folder."""
_FORMAT = 1
_POOLER = "pooler.safetensors"


def save_encoder(encoder: TurnEncoder, recipe: Recipe, folder: Path, *, step: int) -> None:
    """Write backbone, processor, pooler, and the settings of the recipe that inference needs."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.backbone.save(folder)
    pooler = encoder.pooler.state_dict()
    if pooler:
        save_file(pooler, folder / _POOLER)
    metadata = {
        "format": _FORMAT,
        "step": step,
        "packer": recipe.packer.dump(),
        "backbone": recipe.backbone.dump(),
        "pooler": recipe.pooler.dump(),
        "files": {name: file.stat().st_size for name, file in _files(folder).items()},
    }
    (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=1) + "\n")


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return a model's metadata: its step, and the settings of its packer, backbone and pooler.

    Raises:
        DataError: the metadata or a file that it lists is missing or damaged.
    """
    path = folder / METADATA_FILE
    try:
        metadata = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{folder}: no trained model here; train it first, without --only evaluate") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        raise DataError(f"{path}: not of this version of muco, which reads format {_FORMAT}")
    if missing := [key for key in ("step", "packer", "backbone", "pooler") if key not in metadata]:
        raise DataError(f"{path}: {', '.join(missing)} missing; copy the model folder again")
    sizes = {name: file.stat().st_size for name, file in _files(folder).items()}
    damaged = [name for name, size in metadata.get("files", {}).items() if sizes.get(name) != size]
    if damaged:
        raise DataError(
            f"{folder}: {', '.join(damaged)}: missing, or of another size than when the model was saved. "
            "Copy the folder again, or take the model folder of a checkpoint."
        )
    return metadata


def load_encoder(recipe: Recipe, folder: Path) -> TurnEncoder:
    """Return the encoder that `save_encoder` wrote.

    Raises:
        DataError: a file is missing or damaged, or the weights do not fit the recipe.
    """
    read_metadata(folder)
    backbone = cast(Any, recipe.backbone.cls).load(recipe.backbone.config, folder)
    encoder = with_pooler(recipe, backbone)
    _load_pooler(encoder, folder)
    return encoder


def load_pretrained_pooler(recipe: Recipe, encoder: TurnEncoder) -> None:
    """Load the pooler's weights if `backbone.pretrained` is a model folder with the recipe's pooler.

    Raises:
        DataError: a file of that folder is missing or damaged.
    """
    folder = Path(getattr(recipe.backbone.config, "pretrained", None) or "").expanduser()
    if (folder / METADATA_FILE).is_file() and read_metadata(folder)["pooler"] == recipe.pooler.dump():
        _load_pooler(encoder, folder)


def trained_steps(folder: Path) -> int:
    """Return the number of updates after which the model was saved."""
    return read_metadata(folder)["step"]


def weights_hash(folder: Path) -> str:
    """Return a hash of all files of the folder: models of equal hash give equal embeddings."""
    digest = blake2b(digest_size=16)
    for name, file in _files(folder).items():
        with open(file, "rb") as opened:
            digest.update(name.encode())
            while block := opened.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _load_pooler(encoder: TurnEncoder, folder: Path) -> None:
    weights = folder / _POOLER
    encoder.pooler.load_state_dict(load_file(weights) if weights.is_file() else {})


def _files(folder: Path) -> dict[str, Path]:
    """Return all files of a folder by their relative paths, in order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): file for file in files}
