"""The index of a folder of shards: where each sample is, so that any of them is read without scanning.

`index.json` lists the shards. `index.npy` holds one row per sample and is memory-mapped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from muco.core.errors import DataError, library_errors
from muco.io.atomic import atomic_file, write_text
from muco.io.untrusted import parse_json

INDEX_VERSION = 1
INDEX_JSON, INDEX_ROWS = "index.json", "index.npy"

_ROWS_AT_ONCE = 2**16

Layout = Literal["muco", "webdataset"]
"""muco: as in docs/shards.md. webdataset: written by another tool; a recipe's `columns` make pairs."""

Row = tuple[int, int, int, int]
"""Shard, key, offset and size of a sample, as in `ROW`."""
ROW = np.dtype([("shard", "<u4"), ("key", "<u4"), ("offset", "<u8"), ("size", "<u8")])
"""Index of the shard; key, nine digits in the tar; offset in the shard and size of the entries, in bytes."""


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    file: str
    num_bytes: int
    num_samples: int
    blake2b: str
    """Hex digest of the whole file, 16 bytes."""


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one folder."""

    folder: Path
    shards: tuple[Shard, ...]
    rows: NDArray[np.void]
    """`ROW` [samples], in the order in which they were written."""
    metadata: dict[str, Any]
    """What made the shards: source, settings, versions. `about` in the file."""
    layout: Layout = "muco"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> str:
        """A hash of the data: two folders with one fingerprint hold the same samples."""
        return blake2b("".join(shard.blake2b for shard in self.shards).encode(), digest_size=8).hexdigest()


def write_index(
    folder: Path,
    shards: Sequence[Shard],
    rows: Iterable[Row],
    metadata: dict[str, Any],
    *,
    layout: Layout = "muco",
) -> None:
    """Write both files, the JSON last: a folder that has one is complete."""
    num_samples = sum(shard.num_samples for shard in shards)
    digest = blake2b(digest_size=16)
    with atomic_file(folder / INDEX_ROWS) as file:
        header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (num_samples,)}
        np.lib.format.write_array_header_1_0(file, header)
        pending = iter(rows)
        while chunk := list(islice(pending, _ROWS_AT_ONCE)):
            data = np.array(chunk, dtype=ROW).tobytes()
            file.write(data)
            digest.update(data)
    values = {"version": INDEX_VERSION, "about": metadata, "num_samples": num_samples}
    values |= {"rows_blake2b": digest.hexdigest(), "layout": layout}
    values["shards"] = [asdict(shard) for shard in shards]
    write_text(folder / INDEX_JSON, json.dumps(values, indent=1) + "\n")


def read_index(folder: Path, *, shards_elsewhere: bool = False) -> ShardIndex:
    """Open the index and check that every shard is there with its size, unless they are elsewhere.

    Raise DataError for no index, a broken one, no samples, or shards that do not fit it.
    """
    if not folder.exists():
        raise DataError(f"{folder} does not exist")
    if not (folder / INDEX_JSON).is_file():
        has_tars = any(folder.glob("*.tar"))
        hint = f" `muco data index {folder}` makes one for tars of another tool." if has_tars else ""
        raise DataError(f"{folder}: no {INDEX_JSON}; this is no folder of muco shards.{hint}")
    try:
        values = parse_json((folder / INDEX_JSON).read_bytes())
        version = values["version"]
        shards = tuple(map(_shard, values["shards"])) if version == INDEX_VERSION else ()
        rows = _open_rows(folder / INDEX_ROWS)
        metadata, layout = dict(values["about"]), values["layout"]
        num_samples, rows_digest = values["num_samples"], values["rows_blake2b"]
    except (DataError, OSError, EOFError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(
            f"{folder}: the index is broken: {error}. Remove the folder and make the shards again."
        ) from None
    if version != INDEX_VERSION:
        raise DataError(f"{folder}: index version {version}; this muco reads {INDEX_VERSION}")
    if num_samples == 0:
        raise DataError(f"{folder}: the shards hold no sample")
    if layout not in get_args(Layout):
        raise DataError(
            f"{folder}: the index has layout {layout!r}; muco reads {', '.join(get_args(Layout))}"
        )
    if len(rows) != num_samples or not _fit(rows, shards):
        raise DataError(f"{folder}: {INDEX_ROWS} does not belong to {INDEX_JSON}; make the shards again")
    if blake2b(rows.data, digest_size=16).hexdigest() != rows_digest:
        raise DataError(f"{folder}: {INDEX_ROWS} does not have the checksum in {INDEX_JSON}")
    for shard in shards:
        path = folder / shard.file
        if path.name != shard.file:
            raise DataError(f"{folder}: the index names {shard.file!r}; a shard must be next to its index")
        if shards_elsewhere:
            continue
        if not os.path.isfile(path):  # False also for a name that is too long
            raise DataError(f"{path}: missing, though the index names it")
        if path.stat().st_size != shard.num_bytes:
            raise DataError(
                f"{path}: {path.stat().st_size:,} bytes, the index says {shard.num_bytes:,}; "
                "the file was cut short or changed. Make the shards again."
            )
    return ShardIndex(folder, shards, rows, metadata, layout)


def _shard(values: dict[str, Any]) -> Shard:
    shard = Shard(**values)
    is_typed = list(map(type, vars(shard).values())) == [str, int, int, str]
    if not is_typed or not all(0 <= size < 2**63 for size in (shard.num_bytes, shard.num_samples)):
        raise TypeError(f"{values} is no shard")
    return shard


def _open_rows(path: Path) -> NDArray[np.void]:
    """Map a file of rows into memory; raise ValueError if it holds something else."""
    if not path.is_file():
        raise ValueError(f"no file {path.name}")
    with library_errors(path.name):
        rows = np.lib.format.open_memmap(path, mode="r")
    if rows.dtype != ROW or rows.ndim != 1:
        raise ValueError(f"{path.name} is {rows.dtype} {list(rows.shape)}, not rows of samples")
    return rows


def _fit(rows: NDArray[np.void], shards: Sequence[Shard]) -> bool:
    """Return whether each shard has as many rows as samples, and all rows lie inside their shard."""
    owners = rows["shard"]
    if owners.max() >= len(shards):
        return False
    if np.bincount(owners, minlength=len(shards)).tolist() != [shard.num_samples for shard in shards]:
        return False
    num_bytes = np.array([shard.num_bytes for shard in shards], dtype="<u8")[owners]
    # The sum of offset and size may exceed 64 bits.
    return bool(((rows["size"] <= num_bytes) & (rows["offset"] <= num_bytes - rows["size"])).all())
