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
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from muco.core.errors import DataError, MucoError
from muco.io.json_text import parse_json

METADATA_KEY = b"muco"
FORMAT = 1
SUFFIXES = (".parquet", ".npy")


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
    dtype: str
    """Of a number: float32 or float16."""
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
        if not path.is_file():
            raise DataError(f"{path}: no such file. `muco encode MODEL INPUTS --to {path}` makes it.")
        try:
            metadata, rows, vectors = read(path)
            checked = TypeAdapter(StoreMetadata).validate_json(metadata, strict=True)
            rows = TypeAdapter(list[Row]).validate_python(rows)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{path}: damaged, or not written by `muco encode`: {where}: {first['msg']}"
            ) from None
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: damaged, or not written by `muco encode`: {error}") from None
        if checked.format != FORMAT or vectors.shape != (len(rows), checked.dim):
            raise DataError(f"{path}: {list(vectors.shape)} numbers do not belong to {len(rows)} rows")
        return cls(path, checked, rows, vectors)

    @property
    def dim(self) -> int:
        """D."""
        return self.metadata.dim

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
    lines = path.with_suffix(".jsonl").read_bytes().splitlines()
    return (
        path.with_suffix(".json").read_text(encoding="utf-8"),
        [parse_json(line) for line in lines],
        np.load(path, mmap_mode="c", allow_pickle=False),
    )
