"""Write a store of vectors part by part: a killed process loses at most one part."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muco.core.errors import DataError, MucoError, library_errors
from muco.core.sample import Content
from muco.io.atomic import atomic_file, remove_folder, write_errors, write_text
from muco.io.lock import locked
from muco.io.untrusted import parse_json
from muco.vectors.inputs import Inputs
from muco.vectors.store import METADATA_KEY, SUFFIXES, Row, StoreMetadata, VectorStore

_BESIDE = {".parquet": (), ".npy": (".jsonl", ".json")}
"""Suffixes of the files beside a store."""
PART_ROWS = 256
"""Items that are encoded and written together."""

Encode = Callable[[Sequence[Content]], tuple[NDArray[np.float32], dict[int, DataError]]]
"""Returns vectors [N, D], and for each content that cannot be encoded its index and why."""
Track = Callable[[Iterable[range], int], Iterable[range]]
"""A progress bar: (ranges of rows, number of rows) -> the same ranges."""


@dataclass(frozen=True)
class Written:
    """The result of `write_store`."""

    num_new: int
    """Items that this call added."""
    num_rows: int
    """Items in the store."""
    skipped: dict[str, str]
    """Items that were not encoded: where each is, and why."""


def write_store(
    path: Path,
    inputs: Inputs,
    metadata: StoreMetadata,
    encode: Encode,
    *,
    append: bool = False,
    track: Track = lambda ranges, number: ranges,
) -> Written:
    """Encode items into a store; a call after a kill continues, and writes the same bytes.

    `append` adds the items whose ids a Parquet store does not have. `encode` embeds some contents. Raise
    MucoError if the store is there already and has other inputs or another model, a file of another origin
    has the name of one of its files, another process writes it, or the disk is full or not writable.
    """
    if path.suffix not in SUFFIXES:
        raise MucoError(f"{path}: name a store that ends in {' or '.join(SUFFIXES)}")
    if append and path.suffix != ".parquet":
        raise MucoError(f"{path}: --append needs a store that ends in .parquet")
    parts = path.with_name(f".{path.name}.parts")
    with write_errors(f"{path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock"), wait=False):
            written = _write(path, parts, inputs, metadata, encode, append, track)
            remove_folder(parts)
            return written


def _write(
    path: Path,
    parts: Path,
    inputs: Inputs,
    metadata: StoreMetadata,
    encode: Encode,
    append: bool,
    track: Track,
) -> Written:
    metadata = replace(metadata, inputs=inputs.digest())
    base = VectorStore.open(path) if path.exists() else None
    if base is not None:
        base.check_model(metadata.fingerprint, metadata.model)
        if not append and base.metadata == metadata:
            return Written(0, len(base.rows), {})
        _check_append(base, metadata, append=append)
    known = {row.id: row for row in base.rows} if base else {}
    rows = [row for row in inputs.rows if row.id not in known]
    changed = [row.id for row in inputs.rows if known.get(row.id, row) != row]
    skipped = inputs.faults | dict.fromkeys(changed, "the store has this id with another text or image")
    if base is not None and not rows:
        return Written(0, len(base.rows), skipped)
    _begin(path, parts, {**asdict(metadata), "base": base.metadata.inputs if base else ""})
    ranges = [range(start, min(start + PART_ROWS, len(rows))) for start in range(0, len(rows), PART_ROWS)]
    for some in track(ranges, len(rows)):
        if not _part(parts, some).is_file():
            _write_part(_part(parts, some), [rows[row] for row in some], inputs, metadata, encode)
    made: list[tuple[list[Row], NDArray[Any]]] = []
    for some in ranges:
        own, faults = _read_part(_part(parts, some), [rows[row] for row in some])
        made.append(own)
        skipped |= faults
    chunks = [*([(list(base.rows), base.vectors)] if base else []), *made]
    num_rows, num_new = (sum(len(own) for own, _ in each) for each in (chunks, made))
    if not num_rows:
        reasons = "; ".join(f"{where}: {why}" for where, why in list(skipped.items())[:3])
        raise DataError(f"none of the {len(rows):,} items can be encoded. {reasons}")
    _write_whole(path, chunks, metadata)
    return Written(num_new, num_rows, skipped)


def _check_append(base: VectorStore, metadata: StoreMetadata, *, append: bool) -> None:
    for name in ("instruction", "dim", "dtype", "root"):
        old, new = getattr(base.metadata, name), getattr(metadata, name)
        if old != new:
            raise MucoError(
                f"{base.path} was made with {name} {old!r}, not {new!r}; give these a store of their own"
            )
    if not append:
        raise MucoError(f"{base.path} is there already, with other items. --append adds those that it lacks.")


def _begin(path: Path, parts: Path, plan: dict[str, Any]) -> None:
    """Keep the parts that were written under this plan, and remove those of another.

    Raise MucoError if a file that this plan did not write has the name of one beside the store.
    """
    file = parts / "plan.json"
    text = json.dumps(plan, sort_keys=True)
    if file.is_file() and file.read_bytes() == text.encode():
        return
    for beside in (path.with_suffix(suffix) for suffix in _BESIDE[path.suffix]):
        if beside.exists():
            raise MucoError(f"{beside} is there already, and {path} would replace it: choose another name")
    remove_folder(parts)
    write_text(file, text)


def _part(parts: Path, rows: range) -> Path:
    return parts / f"{rows.start:09d}.npz"


def _write_part(
    path: Path, rows: Sequence[Row], inputs: Inputs, metadata: StoreMetadata, encode: Encode
) -> None:
    """Write the vectors of the rows that can be encoded, and why the others cannot."""
    faults: dict[int, str] = {}
    contents: dict[int, Content] = {}
    for index, row in enumerate(rows):
        try:
            contents[index] = inputs.content(row)
        except DataError as error:
            faults[index] = str(error)
    vectors = np.empty((0, metadata.dim), dtype=np.float32)
    if contents:
        vectors, broken = encode(list(contents.values()))
        indices = list(contents)
        faults |= {indices[row]: str(error) for row, error in broken.items()}
        vectors = vectors[[row for row in range(len(indices)) if row not in broken]]
    with atomic_file(path) as file:
        reasons = json.dumps(faults)
        np.savez(file, vectors=vectors.astype(metadata.dtype), faults=np.array(reasons))


def _read_part(path: Path, rows: Sequence[Row]) -> tuple[tuple[list[Row], NDArray[Any]], dict[str, str]]:
    with (
        library_errors(f"{path}: damaged; remove {path.parent} and start again"),
        np.load(path, allow_pickle=False) as saved,
    ):
        faults = {int(index): reason for index, reason in parse_json(str(saved["faults"])).items()}
        good = [row for index, row in enumerate(rows) if index not in faults]
        return (good, saved["vectors"]), {rows[index].id: reason for index, reason in faults.items()}


def _write_whole(
    path: Path, chunks: Sequence[tuple[Sequence[Row], NDArray[Any]]], metadata: StoreMetadata
) -> None:
    if path.suffix == ".parquet":
        _write_parquet(path, chunks, metadata)
        return
    rows = (row for own, _ in chunks for row in own)
    lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    write_text(path.with_suffix(".jsonl"), lines)
    write_text(path.with_suffix(".json"), metadata.dump() + "\n")
    with atomic_file(path) as file:  # the last file: with it the store is whole
        np.save(file, np.concatenate([vectors for _, vectors in chunks]), allow_pickle=False)


def _write_parquet(
    path: Path, chunks: Sequence[tuple[Sequence[Row], NDArray[Any]]], metadata: StoreMetadata
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    number = pa.from_numpy_dtype(np.dtype(metadata.dtype))
    vector = pa.list_(number, metadata.dim)
    strings = [pa.field(name, pa.string()) for name in ("id", "text", "image")]
    schema = pa.schema([*strings, pa.field("vector", vector)], {METADATA_KEY: metadata.dump()})
    with atomic_file(path) as file, parquet.ParquetWriter(file, schema) as writer:
        for rows, vectors in chunks:
            if not len(rows):
                continue
            flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), number)
            columns = [pa.array([getattr(row, field.name) for row in rows], pa.string()) for field in strings]
            whole = [*columns, pa.FixedSizeListArray.from_arrays(flat, metadata.dim)]
            writer.write_table(pa.Table.from_arrays(whole, schema=schema))
