"""Read the rows of JSONL, CSV, TSV and Parquet files, one at a time, from any row on."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from muco.core.errors import DataError, MucoError
from muco.io.table_text import text_of

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv")
"""Suffixes of the files that can be read; `.ndjson` is read as JSONL."""

_BATCH_ROWS = 64
_BUFFER_BYTES = 2**20
_MAX_LINE_BYTES = 2**26


@dataclass(frozen=True)
class Row:
    """One row of a table, or the reason why it cannot be read."""

    file: str
    """Name of the file, for messages and ids."""
    number: int
    """Number of the row in its file, from 0."""
    values: dict[str, Any] = field(default_factory=dict)
    """Value of each column. JSONL and Parquet keep their types; in CSV and TSV every value is a string."""
    fault: str = ""
    """Why the row cannot be read; empty if it can."""

    @property
    def location(self) -> str:
        """File and row number, for messages."""
        return f"{self.file}: row {self.number:,}"

    def checked(self) -> Row:
        """Return the row; raise DataError if it could not be read."""
        if self.fault:
            raise DataError(self.fault)
        return self

    def text(self, column: str) -> str:
        """Return the text in a column; empty if the column is absent or null.

        Raises:
            DataError: the value is not a string, or is not valid Unicode.
        """
        return text_of(self.values.get(column), column)


def strict_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield location (path and row number from 1) and values of each row; for tables without bad rows.

    Raises:
        DataError: the file is missing or has another suffix, or a row cannot be read.
    """
    for row in rows(path):
        location = f"{path}, row {row.number + 1}"
        if row.fault:
            raise DataError(f"{location}: {row.fault}")
        yield location, row.values


def num_rows(path: Path) -> int:
    """Return the number of rows, including those that cannot be read; raises as `rows` does."""
    if path.suffix == ".parquet":
        return _parquet(path).metadata.num_rows
    return sum(1 for _ in rows(path))


def rows(path: Path, columns: Sequence[str] | None = None, *, start: int = 0) -> Iterator[Row]:
    """Yield the rows from number `start` on, in bounded memory; a row that cannot be read has a `fault`.

    Args:
        path: a file with one of `SUFFIXES`, which decides how it is read.
        columns: the columns to read; None for all. In JSONL a row may lack some of them.
        start: number of rows to skip. Whole row groups of a Parquet file are skipped without reading.

    Raises:
        DataError: the file is missing, broken or has another suffix, or it has no such column.
    """
    readers = {".parquet": _parquet_rows, ".csv": _csv_rows, ".tsv": _csv_rows}
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: tables end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        yield from readers.get(path.suffix, _json_rows)(path, columns, start)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def json_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object on a line; raise DataError if there is none."""
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"no JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"a {type(values).__name__} instead of a JSON object")
    return values


def _json_rows(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Row]:
    with open(path, "rb") as file:
        lines = (line for line in _lines(file) if line.strip())
        for number, line in enumerate(lines):
            if number == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if number >= start:
                yield _json_row(path.name, number, line, columns)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines; one that is longer than the limit is cut one byte behind it."""
    while line := file.readline(_MAX_LINE_BYTES + 1):
        yield line
        while len(line) > _MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE_BYTES + 1)


def _json_row(file: str, number: int, line: bytes, columns: Sequence[str] | None) -> Row:
    if len(line) > _MAX_LINE_BYTES:
        return Row(file, number, fault=f"longer than {_MAX_LINE_BYTES:,} bytes")
    try:
        values = json_object(line)
    except DataError as error:
        return Row(file, number, fault=str(error))
    return Row(file, number, {name: values[name] for name in columns or values if name in values})


def _csv_rows(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Row]:
    csv.field_size_limit(_MAX_LINE_BYTES)
    dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
    # Bytes that are not UTF-8 become surrogates, which `text_of` refuses row by row.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, dialect=dialect)
        try:
            _check_columns(path, columns, list(reader.fieldnames or ()))
            for number, values in enumerate(islice(reader, start, None), start):
                if None in values or None in values.values():
                    yield Row(path.name, number, fault="more or fewer fields than the heading has")
                else:
                    yield Row(path.name, number, {key: values[key] for key in columns or values})
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: {error}") from None


def _parquet_rows(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Row]:
    table = _parquet(path)
    _check_columns(path, columns, table.schema_arrow.names)
    number, first_group = 0, 0
    while first_group < table.num_row_groups:
        length = table.metadata.row_group(first_group).num_rows
        if number + length > start:
            break
        number, first_group = number + length, first_group + 1
    batches = table.iter_batches(
        _BATCH_ROWS,
        row_groups=range(first_group, table.num_row_groups),
        columns=None if columns is None else list(columns),
        use_threads=False,
    )
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: broken near row {number:,}: {error}") from error
        if batch is None:
            return
        for index in range(max(0, start - number), len(batch)):
            yield _parquet_row(path.name, number + index, batch.slice(index, 1))
        number += len(batch)


def _parquet_row(file: str, number: int, row: Any) -> Row:
    try:
        return Row(file, number, row.to_pylist()[0])
    except UnicodeDecodeError as error:
        return Row(file, number, fault=f"not UTF-8: {error}")


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MucoError(f"{path}: reading Parquet needs pyarrow: pip install 'muco[data]'") from None
    try:
        # Stream each column of a row group through a buffer: it is never whole in memory.
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no Parquet file that can be read: {error}") from error


def _check_columns(path: Path, columns: Sequence[str] | None, names: Sequence[str]) -> None:
    missing = [name for name in columns or () if name not in names]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}. Columns: {', '.join(names) or 'none'}")
