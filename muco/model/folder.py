"""The model folder: what a run leaves for `muco evaluate`, export and resuming."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file

from muco.config.recipe import Recipe
from muco.core.encoder import TurnEncoder
from muco.core.errors import DataError
from muco.model.build import with_pooler

ABOUT = "muco.json"
"""What says which model a folder holds."""
_FORMAT = 1
_POOLER = "pooler.safetensors"


def save_encoder(encoder: TurnEncoder, recipe: Recipe, folder: Path, *, step: int) -> None:
    """Write backbone, processor, pooler and the recipe's parts that inference needs."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.backbone.save(folder)
    pooler = encoder.pooler.state_dict()
    if pooler:
        save_file(pooler, folder / _POOLER)
    about = {
        "format": _FORMAT,
        "step": step,
        "packer": recipe.packer.dump(),
        "backbone": recipe.backbone.dump(),
        "pooler": recipe.pooler.dump(),
        "files": {name: file.stat().st_size for name, file in _files(folder).items()},
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def read_about(folder: Path) -> dict[str, Any]:
    """Return what `save_encoder` says of a model: its parts, and after how many steps it was saved.

    Raises:
        DataError: it is not there or not as it was written, one of its files among it.
    """
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: no trained model here; train it first, without --only evaluate") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise DataError(f"{path}: not of this version of muco, which reads format {_FORMAT}")
    if missing := [key for key in ("step", "packer", "backbone", "pooler") if key not in about]:
        raise DataError(f"{path}: {', '.join(missing)} missing; copy the model folder again")
    found = {name: file.stat().st_size for name, file in _files(folder).items()}
    damaged = [name for name, size in about.get("files", {}).items() if found.get(name) != size]
    if damaged:
        raise DataError(
            f"{folder}: {', '.join(damaged)}: missing, or of another size than when the model was saved. "
            "Copy the folder again, or take that of a checkpoint."
        )
    return about


def load_encoder(recipe: Recipe, folder: Path) -> TurnEncoder:
    """Return the encoder that `save_encoder` wrote.

    Raises:
        DataError: it is not there, or its weights do not fit the recipe.
    """
    read_about(folder)
    backbone = cast(Any, recipe.backbone.cls).load(recipe.backbone.config, folder)
    encoder = with_pooler(recipe, backbone)
    _read_pooler(encoder, folder)
    return encoder


def start_from(recipe: Recipe, encoder: TurnEncoder) -> None:
    """Give a new encoder's pooler the weights that it has where the backbone's are from.

    That is, in the model folder that `backbone.pretrained` names, if its pooler has the recipe's settings.

    Raises:
        DataError: the folder is not as it was written.
    """
    folder = Path(getattr(recipe.backbone.config, "pretrained", None) or "").expanduser()
    if (folder / ABOUT).is_file() and read_about(folder)["pooler"] == recipe.pooler.dump():
        _read_pooler(encoder, folder)


def trained_steps(folder: Path) -> int:
    """Return after how many updates the model was saved."""
    return read_about(folder)["step"]


def weights_hash(folder: Path) -> str:
    """Return a hash of the folder's weights, tokenizer and settings: equal hash, equal embeddings."""
    digest = blake2b(digest_size=16)
    for name, file in _files(folder).items():
        with open(file, "rb") as opened:
            digest.update(name.encode())
            while block := opened.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _read_pooler(encoder: TurnEncoder, folder: Path) -> None:
    weights = folder / _POOLER
    encoder.pooler.load_state_dict(load_file(weights) if weights.is_file() else {})


def _files(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by their names in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): file for file in found}
