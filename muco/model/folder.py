"""Write and read model folders: weights, tokenizer and settings for evaluation, export and resuming."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from os.path import expanduser
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from muco.config.recipe import ModelSettings
from muco.core.encoder import TurnEncoder
from muco.core.errors import DataError, library_errors
from muco.core.packer import Packer
from muco.io.safetensors_header import read_header
from muco.io.untrusted import parse_json, read_file

METADATA_FILE = "muco.json"
"""A folder with this file is a model folder."""
_FORMAT = 1
_POOLER = "pooler.safetensors"
_EXPORTED_POOLER = "pooler/pooler.safetensors"
"""In a folder of `muco export`: vLLM reads every safetensors file beside the model's own."""
_FILE_KEYS = {"files"}
_LOADING_KEYS = {"is_local", "local_files_only", "name_or_path", "_name_or_path", "transformers_version"}
"""Say where a file was loaded from and by which version."""


def save_encoder(
    encoder: TurnEncoder,
    settings: ModelSettings,
    folder: Path,
    *,
    step: int,
    nested_dims: Sequence[int] = (),
) -> None:
    """Write backbone, processor, pooler, and the settings that they were built from.

    Args:
        encoder: its weights are on any device.
        settings: what it was built from.
        folder: of the model; made if it is missing.
        step: number of updates so far.
        nested_dims: `Loss.nested_dims` of the training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder.backbone.save(folder)
    _save_pooler(encoder, folder / _POOLER)
    _write_metadata(settings, folder, step=step, nested_dims=nested_dims)


def save_exported(
    encoder: TurnEncoder, settings: ModelSettings, folder: Path, *, step: int, nested_dims: Sequence[int]
) -> None:
    """Make a folder that `Backbone.export` wrote one that `load_model` reads; arguments as above."""
    _save_pooler(encoder, folder / _EXPORTED_POOLER)
    _write_metadata(settings, folder, step=step, nested_dims=nested_dims)


def _write_metadata(settings: ModelSettings, folder: Path, *, step: int, nested_dims: Sequence[int]) -> None:
    """Write `METADATA_FILE`, with the sizes of the files that are there."""
    metadata = {
        "format": _FORMAT,
        "step": step,
        "nested_dims": list(nested_dims),
        **settings.dump(),
        "files": {name: file.stat().st_size for name, file in _files(folder).items()},
    }
    (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=1) + "\n")


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return a model's step and components; raise DataError if a file is missing or damaged."""
    path = folder / METADATA_FILE
    try:
        metadata = parse_json(read_file(path))
    except FileNotFoundError:
        raise DataError(f"{folder}: no trained model here; train it first, without --only evaluate") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        raise DataError(f"{path}: not of this version of muco, which reads format {_FORMAT}")
    if missing := [key for key in ("step", "packer", "backbone", "pooler") if key not in metadata]:
        raise DataError(f"{path}: {', '.join(missing)} missing; copy the model folder again")
    step, listed, dims = metadata["step"], metadata.get("files", {}), metadata.get("nested_dims", [])
    is_typed = isinstance(listed, dict) and isinstance(dims, list) and all(type(dim) is int for dim in dims)
    if not (is_typed and type(step) is int and step >= 0):
        raise DataError(f"{path}: step, files or nested_dims is not what muco writes; copy the folder again")
    sizes = {name: file.stat().st_size for name, file in _files(folder).items()}
    damaged = [name for name, size in listed.items() if sizes.get(name) != size]
    if damaged:
        raise DataError(
            f"{folder}: {', '.join(damaged)}: missing, or of another size than when the model was saved. "
            "Copy the folder again, or take the model folder of a checkpoint."
        )
    return metadata


@dataclass(frozen=True)
class LoadedModel:
    """An encoder and what identifies it in a result."""

    settings: ModelSettings
    packer: Packer
    """Makes a dialogue of a content, as in training."""
    encoder: TurnEncoder
    weights: str
    """A hash of weights and processor: models of equal hash give equal embeddings."""
    step: int
    """Number of updates after which it was saved; 0 for a backbone that was not trained here."""
    nested_dims: tuple[int, ...] = ()
    """Sizes to which its embeddings may be cut; see `Loss.nested_dims`."""


def load_model(settings: ModelSettings, folder: Path) -> LoadedModel:
    """Return the model that `save_encoder` wrote; raises as `load_encoder`."""
    encoder, saved = load_encoder(settings, folder), read_metadata(folder)
    packer, nested_dims = settings.packer.make(), tuple(saved.get("nested_dims", ()))
    return LoadedModel(settings, packer, encoder, weights_hash(folder), saved["step"], nested_dims)


def load_encoder(settings: ModelSettings, folder: Path) -> TurnEncoder:
    """Return the encoder that `save_encoder` wrote; raise DataError if a file is missing or does not fit."""
    read_metadata(folder)
    backbone = settings.backbone.cls.load(settings.backbone.config, folder)
    encoder = TurnEncoder(backbone, settings.pooler.make(hidden_dim=backbone.hidden_dim))
    _load_pooler(encoder, folder)
    return encoder


def load_pretrained_pooler(settings: ModelSettings, encoder: TurnEncoder) -> None:
    """Load the pooler's weights if `backbone.pretrained` is a model folder with an equal pooler."""
    folder = Path(expanduser(getattr(settings.backbone.config, "pretrained", None) or ""))
    if (folder / METADATA_FILE).is_file() and read_metadata(folder)["pooler"] == settings.pooler.dump():
        _load_pooler(encoder, folder)


def weights_hash(folder: Path) -> str:
    """Return a hash of weights, processor and settings: models of equal hash give equal embeddings.

    What does not affect an embedding is left out: the order of a safetensors header, spaces in JSON, and
    keys that transformers adds when it saves what it loaded from a folder.
    """
    digest = blake2b(digest_size=16)
    for name, path in _files(folder).items():
        digest.update(name.encode())
        with open(path, "rb") as file, library_errors(f"{path} cannot be read"):
            if path.suffix == ".safetensors":
                digest.update(_canonical(read_header(file)))
            elif path.suffix == ".json":
                values = json.loads(file.read())
                ignored = _FILE_KEYS if name == METADATA_FILE else _LOADING_KEYS
                if isinstance(values, dict):
                    values = {key: value for key, value in values.items() if key not in ignored}
                digest.update(_canonical(values))
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


def _save_pooler(encoder: TurnEncoder, file: Path) -> None:
    if weights := encoder.pooler.state_dict():
        file.parent.mkdir(exist_ok=True)
        save_file(weights, file)


def _load_pooler(encoder: TurnEncoder, folder: Path) -> None:
    files = [folder / name for name in (_POOLER, _EXPORTED_POOLER) if (folder / name).is_file()]
    with library_errors(f"{folder}: {_POOLER} does not fit the pooler of {METADATA_FILE}"):
        encoder.pooler.load_state_dict(load_file(files[0]) if files else {})


def _files(folder: Path) -> dict[str, Path]:
    """Return a folder's files by their relative paths, in order; a README and hidden files are no model."""
    names = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return {name: path for name, path in names.items() if name != "README.md" and not name.startswith(".")}
