"""The model folder: what a run leaves for `muco evaluate`, export and resuming."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file

from muco.core.encoder import TurnEncoder
from muco.core.errors import DataError
from muco.core.recipe import Recipe
from muco.training.build import with_pooler

_FORMAT = 1


def save_encoder(encoder: TurnEncoder, recipe: Recipe, folder: Path, *, step: int) -> None:
    """Write backbone, processor, pooler and the recipe's parts that inference needs."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.backbone.save(folder)
    pooler = encoder.pooler.state_dict()
    if pooler:
        save_file(pooler, folder / "pooler.safetensors")
    parts = {
        "packer": recipe.packer.dump(),
        "backbone": recipe.backbone.dump(),
        "pooler": recipe.pooler.dump(),
    }
    (folder / "muco.json").write_text(json.dumps({"format": _FORMAT, "step": step, **parts}, indent=1) + "\n")


def load_encoder(recipe: Recipe, folder: Path) -> TurnEncoder:
    """Return the encoder that `save_encoder` wrote.

    Raises:
        DataError: it is not there, or its weights do not fit the recipe.
    """
    if not (folder / "muco.json").is_file():
        raise DataError(f"{folder}: no trained model here; train it first, without --only evaluate")
    backbone = cast(Any, recipe.backbone.cls).load(recipe.backbone.config, folder)
    encoder = with_pooler(recipe, backbone)
    weights = folder / "pooler.safetensors"
    encoder.pooler.load_state_dict(load_file(weights) if weights.is_file() else {})
    return encoder


def trained_steps(folder: Path) -> int:
    """Return after how many updates the model was saved."""
    return json.loads((folder / "muco.json").read_text())["step"]


def weights_hash(folder: Path) -> str:
    """Return a hash of the folder's weights, tokenizer and settings: equal hash, equal embeddings."""
    digest = blake2b(digest_size=16)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(file, "rb") as opened:
            digest.update(file.relative_to(folder).as_posix().encode())
            while block := opened.read(2**24):
                digest.update(block)
    return digest.hexdigest()
