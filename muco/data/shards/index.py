"""The index of a folder of shards: where each sample lies, so that any is read without scanning.

`index.json` names the shards; `index.npy` holds a row a sample and is mapped, not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from muco.core.errors import DataError

INDEX_VERSION = 1
INDEX_JSON, INDEX_ROWS = "index.json", "index.npy"

_ROWS_AT_ONCE = 2**16

Layout = Literal["muco", "webdataset"]
"""muco: samples as docs/shards.md has them. webdataset: another tool's; a recipe's `columns` make pairs."""

ROW = np.dtype([("shard", "<u4"), ("key", "<u4"), ("offset", "<u8"), ("size", "<u8")])
"""A sample: its shard's number, its key (nine digits in the tar), where its entries begin, their bytes."""


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
    """Where the samples of one folder lie."""

    folder: Path
    shards: tuple[Shard, ...]
    rows: NDArray[np.void]
    """`ROW` [samples], in the order in which they were written."""
    about: dict[str, Any]
    """What made the shards: source, settings, versions."""
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
    rows: Iterable[tuple[int, int, int, int]],
    about: dict[str, Any],
    *,
    layout: Layout = "muco",
) -> None:
    """Write both files; the JSON last and at once, so that a folder with one is whole."""
    num_samples = sum(shard.num_samples for shard in shards)
    digest = blake2b(digest_size=16)
    with open(folder / INDEX_ROWS, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (num_samples,)}
        np.lib.format.write_array_header_1_0(file, header)
        pending = iter(rows)
        while chunk := list(islice(pending, _ROWS_AT_ONCE)):
            data = np.array(chunk, dtype=ROW).tobytes()
            file.write(data)
            digest.update(data)
    meta = {"version": INDEX_VERSION, "about": about, "num_samples": num_samples}
    meta |= {"rows_blake2b": digest.hexdigest(), "layout": layout}
    meta["shards"] = [asdict(shard) for shard in shards]
    beside = folder / f".{INDEX_JSON}.partial"
    beside.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    beside.rename(folder / INDEX_JSON)


def read_index(folder: Path, *, shards_elsewhere: bool = False) -> ShardIndex:
    """Open the index and check that every shard is there in its length.

    Args:
        folder: holds both files.
        shards_elsewhere: the shards do not lie beside them, and are not looked for.

    Raises:
        DataError: no index, a broken one, no samples, or shards that do not fit it.
    """
    if not folder.exists():
        raise DataError(f"{folder} is not there")
    if not (folder / INDEX_JSON).is_file():
        raise DataError(f"{folder}: no {INDEX_JSON}; this is no folder of muco shards.{_hint(folder)}")
    try:
        meta = json.loads((folder / INDEX_JSON).read_text(encoding="utf-8"))
        version = meta["version"]
        shards = tuple(map(_shard, meta["shards"])) if version == INDEX_VERSION else ()
        rows = np.load(folder / INDEX_ROWS, mmap_mode="r")
        about = meta["about"]
        num_samples, rows_digest, layout = meta["num_samples"], meta["rows_blake2b"], meta["layout"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: the index is broken: {error}. Remove the folder and make it anew."
        ) from None
    if version != INDEX_VERSION:
        raise DataError(f"{folder}: index version {version}; this muco reads {INDEX_VERSION}")
    if num_samples == 0:
        raise DataError(f"{folder}: the shards hold no sample")
    if layout not in get_args(Layout):
        raise DataError(
            f"{folder}: the index is of layout {layout!r}; muco reads {', '.join(get_args(Layout))}"
        )
    if rows.dtype != ROW or len(rows) != num_samples or not _fit(rows, shards):
        raise DataError(f"{folder}: {INDEX_ROWS} does not belong to {INDEX_JSON}; make the shards anew")
    if blake2b(rows.data, digest_size=16).hexdigest() != rows_digest:
        raise DataError(f"{folder}: {INDEX_ROWS} is not what {INDEX_JSON} says, by its checksum")
    for shard in shards:
        path = folder / shard.file
        if path.name != shard.file:
            raise DataError(f"{folder}: the index names {shard.file!r}; a shard lies beside its index")
        if shards_elsewhere:
            continue
        if not path.is_file():
            raise DataError(f"{path}: missing, though the index names it")
        if path.stat().st_size != shard.num_bytes:
            raise DataError(
                f"{path}: {path.stat().st_size:,} bytes, the index says {shard.num_bytes:,}; "
                "the file was cut short or changed. Make the shards anew."
            )
    return ShardIndex(folder, shards, rows, about, layout)


def _shard(entry: dict[str, Any]) -> Shard:
    shard = Shard(**entry)
    if list(map(type, vars(shard).values())) != [str, int, int, str]:
        raise TypeError(f"{entry} is no shard")
    return shard


def _fit(rows: NDArray[np.void], shards: Sequence[Shard]) -> bool:
    """Say whether each shard has as many rows as it has samples."""
    found = rows["shard"]
    if found.max() >= len(shards):
        return False
    return np.bincount(found, minlength=len(shards)).tolist() == [shard.num_samples for shard in shards]


def _hint(folder: Path) -> str:
    """Return what may help where there is no index."""
    if any(folder.glob("*.tar")):
        return f" `muco data index {folder}` gives tars of another tool one."
    return ""
