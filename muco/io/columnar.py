"""Read Parquet files, and Arrow files as Hugging Face `datasets` saves them, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from muco.core.errors import DataError, MucoError
from muco.io.untrusted import parse_json

SUFFIXES = (".parquet", ".arrow")

_BATCH_ROWS = 64
_BUFFER_BYTES = 2**20

Labels = Mapping[str, Sequence[str]]
"""The names of the classes of each column that holds their numbers."""


def num_rows(path: Path) -> int:
    """Return the number of rows; raise DataError if the file is broken."""
    if path.suffix.lower() == ".parquet":
        return _parquet(path).metadata.num_rows
    return sum(len(batch) for _, batch in batches(path, None, 0))


def names_and_labels(path: Path) -> tuple[list[str], Labels]:
    """Return the columns, and the classes' names that `datasets` wrote into the file."""
    schema = _parquet(path).schema_arrow if path.suffix.lower() == ".parquet" else _arrow(path).schema
    return schema.names, _labels((schema.metadata or {}).get(b"huggingface"))


def batches(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[tuple[int, Any]]:
    """Yield record batches from row `start` on, each with its first row's number, or raise DataError."""
    read = _parquet_batches if path.suffix.lower() == ".parquet" else _arrow_batches
    number = 0
    try:
        for number, batch in read(path, None if columns is None else list(columns), start):
            skipped = max(0, start - number)
            if skipped < len(batch):
                yield number + skipped, batch.slice(skipped)
            number += len(batch)
    except _errors() as error:
        raise DataError(f"{path}: broken near row {number + 1}: {error}") from error


def row_values(batch: Any, index: int, labels: Labels) -> dict[str, Any]:
    """Return a row's values, a class as its name; raise DataError if Python lacks one of them."""
    try:
        values = batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}") from None
    except _errors() as error:  # such as dates that Python does not have
        raise DataError(f"cannot be read: {error}") from None
    for column, names in labels.items():
        if isinstance(number := values.get(column), int):
            # `datasets` writes -1 where there is no label.
            values[column] = names[number] if 0 <= number < len(names) else None
    return values


def _labels(metadata: bytes | None) -> Labels:
    try:
        features = parse_json(metadata or b"{}")["info"]["features"]
        return {
            name: [str(each) for each in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}  # written by another tool


def _parquet_batches(path: Path, columns: list[str] | None, start: int) -> Iterator[tuple[int, Any]]:
    """Yield small batches; whole row groups before `start` are not read."""
    table = _parquet(path)
    number, first_group = 0, 0
    for group in range(table.num_row_groups):
        length = table.metadata.row_group(group).num_rows
        if number + length > start:
            break
        number, first_group = number + length, group + 1
    groups = range(first_group, table.num_row_groups)
    for batch in table.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
        yield number, batch
        number += len(batch)


def _arrow_batches(path: Path, columns: list[str] | None, start: int) -> Iterator[tuple[int, Any]]:
    number = 0
    reader = _arrow(path)
    if not hasattr(reader, "read_next_batch"):
        reader = map(reader.get_batch, range(reader.num_record_batches))
    for batch in reader:
        batch.validate(full=True)  # else offsets beyond the data are read, and the process may crash
        yield number, batch if columns is None else batch.select(columns)
        number += len(batch)


def _arrow(path: Path) -> Any:
    """Return a reader of a stream, which `datasets` writes, or of Arrow's file format."""
    import pyarrow as pa

    try:
        file = pa.memory_map(str(path))
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        return pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
    except _errors() as error:
        raise DataError(f"{path}: no Arrow file that can be read: {error}") from error


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MucoError(f"{path}: reading Parquet needs pyarrow: pip install 'muco[data]'") from None
    try:
        # Stream each column of a row group through a buffer: it is never whole in memory.
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except _errors() as error:
        raise DataError(f"{path}: no Parquet file that can be read: {error}") from error


def _errors() -> tuple[type[Exception], ...]:
    """Return what pyarrow raises for broken files and for values that Python does not have."""
    import pyarrow as pa

    return OSError, ValueError, OverflowError, LookupError, TypeError, MemoryError, pa.ArrowException
