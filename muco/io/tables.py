"""Rows of JSONL, CSV, TSV and Parquet files, one at a time, from any row on."""

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

_BATCH_ROWS = 64
_BUFFER_BYTES = 2**20
_MAX_LINE_BYTES = 2**26


@dataclass(frozen=True)
class Row:
    """One row, or why it cannot be read."""

    file: str
    number: int
    """From 0, within its file."""
    values: dict[str, Any] = field(default_factory=dict)
    fault: str = ""

    @property
    def place(self) -> str:
        """Where the row lies, in words."""
        return f"{self.file}: row {self.number:,}"

    @property
    def faultless(self) -> Row:
        """The row itself; raise DataError where it could not be read."""
        if self.fault:
            raise DataError(self.fault)
        return self

    def text(self, column: str) -> str:
        """Return a text; an absent or null one is empty.

        Raises:
            DataError: it is something else, or no valid Unicode.
        """
        return text_of(self.values.get(column), column)


def whole_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row lies, in words and counted from 1, and its values.

    Raises:
        DataError: no such file, or a row that cannot be read.
    """
    for row in rows(path):
        place = f"{path}, row {row.number + 1}"
        if row.fault:
            raise DataError(f"{place}: {row.fault}")
        yield place, row.values


def num_rows(path: Path) -> int:
    """Return the number of rows, broken ones included."""
    if path.suffix == ".parquet":
        return _parquet(path).metadata.num_rows
    return sum(1 for _ in rows(path))


def rows(path: Path, columns: Sequence[str] | None = None, *, start: int = 0) -> Iterator[Row]:
    """Yield the rows from `start` on, with bounded memory.

    Args:
        path: its suffix says what it is.
        columns: those wanted, None for all; a table without one of them is an error.
        start: rows passed over; whole row groups of a Parquet file without being read.

    Raises:
        DataError: no such file or column, or no such kind of file.
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


def _json_rows(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Row]:
    with open(path, "rb") as file:
        number = 0
        for line in _lines(file):
            if not line.strip():
                continue
            if number == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if number >= start:
                yield _json_row(path.name, number, line, columns)
            number += 1


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines, of one that is too long no more than what shows it."""
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
    if columns is None:
        return Row(file, number, values)
    return Row(file, number, {name: values[name] for name in columns if name in values})


def json_object(line: bytes) -> dict[str, Any]:
    """Return the object on a line; raise DataError where it holds none."""
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"no JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"a {type(values).__name__} where a JSON object belongs")
    return values


def _csv_rows(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Row]:
    csv.field_size_limit(_MAX_LINE_BYTES)
    dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
    # Bytes that are no UTF-8 become surrogates, which `text_of` refuses row by row.
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
    number, groups = 0, []
    for group in range(table.num_row_groups):
        length = table.metadata.row_group(group).num_rows
        if number + length <= start and not groups:
            number += length
        else:
            groups.append(group)
    wanted = list(columns) if columns is not None else None
    batches = table.iter_batches(_BATCH_ROWS, row_groups=groups, columns=wanted, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: broken near row {number:,}: {error}") from error
        if batch is None:
            return
        first = max(0, start - number)
        for place in range(first, len(batch)):
            yield _parquet_row(path.name, number + place, batch.slice(place, 1))
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
        # A column of a row group is streamed through a buffer: it is never whole in memory.
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no Parquet file that can be read: {error}") from error


def _check_columns(path: Path, wanted: Sequence[str] | None, found: Sequence[str]) -> None:
    missing = [name for name in wanted or () if name not in found]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}. Columns: {', '.join(found) or 'none'}")
