"""A store of vectors on disk: one Parquet file, or `.npy` with a JSONL file beside it.

Parquet: columns `id`, `text` and `image` (strings, null where there is none) and `vector`, a fixed-size list
of D float32 or float16; the file's metadata has `muco`, a JSON object. `x.npy`: an array [N, D], the rows of
the other columns in `x.jsonl`, and the JSON object in `x.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from muco.core.errors import DataError, MucoError, library_errors
from muco.io.image_files import ImageFiles
from muco.io.untrusted import parse_json, read_file

METADATA_KEY = b"muco"
FORMAT = 1
SUFFIXES = (".parquet", ".npy")
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class StoreMetadata:
    """What the vectors of a store depend on."""

    fingerprint: str
    """Of the model: `EmbedderInfo.fingerprint`."""
    model: str
    """The name or the absolute path that the model was loaded by."""
    instruction: str
    """Was put before every text."""
    dim: int
    """D."""
    dtype: Literal["float32", "float16"]
    """Of a number."""
    root: str
    """The absolute folder that image paths start from."""
    inputs: str = ""
    """A hash of the items and of the images' sizes and times."""
    format: int = FORMAT

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Row:
    """One item of a store."""

    id: str
    """Unique in the store."""
    text: str | None
    image: str | None
    """A path below `StoreMetadata.root`."""


@dataclass(frozen=True)
class VectorStore:
    """The rows of a store and their vectors."""

    path: Path
    metadata: StoreMetadata
    rows: Sequence[Row]
    vectors: NDArray[Any]
    """float32 or float16 [N, D], unit length."""

    @classmethod
    def open(cls, path: Path) -> VectorStore:
        """Return a store.

        Raises:
            DataError: it is missing or damaged, or a file of another kind.
        """
        read = {".parquet": _read_parquet, ".npy": _read_npy}.get(path.suffix)
        if read is None:
            raise DataError(f"{path}: a store of vectors ends in {' or '.join(SUFFIXES)}")
        if path.is_dir():
            raise DataError(f"{path} is a folder, not a store of vectors")
        if not path.is_file():
            raise DataError(f"{path}: no such file. `muco encode MODEL INPUTS --to {path}` makes it.")
        not_a_store = f"{path}: damaged, or not written by `muco encode`"
        with library_errors(not_a_store):
            metadata, rows, vectors = read(path)
        try:
            checked = TypeAdapter(StoreMetadata).validate_json(metadata, strict=True)
            rows = TypeAdapter(list[Row]).validate_python(rows)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "metadata"
            raise DataError(f"{not_a_store}: {where}: {first['msg']}") from None
        if checked.format != FORMAT:
            raise DataError(f"{path}: format {checked.format}; this version of muco reads format {FORMAT}")
        if checked.dtype not in DTYPES:
            raise DataError(f"{path}: damaged: dtype {checked.dtype!r}; a store has {' or '.join(DTYPES)}")
        if vectors.shape != (len(rows), checked.dim) or vectors.dtype != checked.dtype:
            raise DataError(
                f"{path}: damaged: vectors {vectors.dtype} {list(vectors.shape)} do not belong to "
                f"{len(rows)} rows of {checked.dim} {checked.dtype}"
            )
        return cls(path, checked, rows, vectors)

    @property
    def dim(self) -> int:
        """D."""
        return self.metadata.dim

    @property
    def images(self) -> ImageFiles:
        """The images of the rows, as viewers show them."""
        return ImageFiles([Path(self.metadata.root)], decoding="faithful")

    def check_model(self, fingerprint: str, name: str) -> None:
        """Raise MucoError unless the vectors are those of a model with this fingerprint."""
        if self.metadata.fingerprint != fingerprint:
            raise MucoError(
                f"{self.path} holds vectors of another model ({self.metadata.model}), not of {name}. Vectors "
                "of two models cannot be compared; encode the inputs again with this one."
            )


def _read_parquet(path: Path) -> tuple[str, list[Any], NDArray[Any]]:
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    metadata = (table.schema.metadata or {})[METADATA_KEY].decode()
    column = table.column("vector").combine_chunks()
    vectors = column.values.to_numpy(zero_copy_only=False, writable=True).reshape(
        len(table), column.type.list_size
    )
    rows = table.select(["id", "text", "image"]).to_pylist()
    return metadata, rows, vectors


def _read_npy(path: Path) -> tuple[str, list[Any], NDArray[Any]]:
    lines = read_file(path.with_suffix(".jsonl")).splitlines()
    return (
        read_file(path.with_suffix(".json")).decode(),
        [parse_json(line) for line in lines],
        np.load(path, mmap_mode="c", allow_pickle=False),
    )
