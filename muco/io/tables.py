"""Read the rows of JSONL, JSON, CSV, TSV, Parquet and Arrow files, one at a time, from any row on."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

from muco.core.errors import DataError
from muco.io import columnar
from muco.io.table_text import is_missing, text_of

SUFFIXES = (*columnar.SUFFIXES, ".jsonl", ".ndjson", ".csv", ".tsv")
"""Suffixes of the tables in a folder, in small or capital letters; `.ndjson` is read as JSONL. All but
Parquet and Arrow may be compressed (`.jsonl.gz`)."""
_LEFT_OUT = (".json", ".xls", ".xlsx", ".feather", ".zst", ".bz2", ".xz", ".gz")
"""Suffixes of files in a folder that may be tables but are not read."""
_DATASETS_FILES = re.compile(r"(state|dataset_info|dataset_dict)\.json|cache-.*\.arrow")
"""Files of Hugging Face `datasets` that hold no rows of a data set, or hold them again."""

_MAX_JSON_BYTES = 2**30
_MAX_LINE_BYTES = 2**26


@dataclass(frozen=True)
class Row:
    """One row of a table, or the reason why it cannot be read."""

    file: str
    """Name of the file, for messages and ids."""
    number: int
    """Number of the row in its file, from 0."""
    values: dict[str, Any] = field(default_factory=dict)
    """Value of each column. JSONL, Parquet and Arrow keep their types, but NaN is None; in CSV and TSV
    every value is a string."""
    fault: str = ""
    """Why the row cannot be read; empty if it can."""
    line: int = 0
    """Line that the row begins on, from 1; 0 in files that have no lines."""

    @property
    def location(self) -> str:
        """File and line, or file and row from 1, for messages."""
        return f"{self.file}: {self.position}"

    @property
    def position(self) -> str:
        """The line in the file, or the row from 1 if the file has no lines."""
        return f"line {self.line}" if self.line else f"row {self.number + 1}"

    def checked(self) -> Row:
        """Return the row; raise DataError if it could not be read."""
        if self.fault:
            raise DataError(self.fault)
        return self

    def text(self, column: str) -> str:
        """Return the text in a column, empty if it is absent or null; raises as `text_of`."""
        return text_of(self.values.get(column), column)


def kind_of(path: Path) -> str:
    """Return the one of `SUFFIXES` or `.json` that decides how a file is read; empty if it is no table."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    known = suffix in SUFFIXES or suffix == ".json"
    return suffix if known and not (suffix in columnar.SUFFIXES and name.endswith(".gz")) else ""


def tables_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the tables in a folder, and the files that may be tables but are not read, both sorted.

    Links to folders are followed. Hidden files and folders are skipped: editors write copies there; so are
    files of `datasets` beside its tables. Raise DataError if the name of a table is not valid Unicode.
    """
    tables: list[Path] = []
    left_out: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        own = [name for name in names if not (name.startswith(".") or _DATASETS_FILES.fullmatch(name))]
        files = [Path(parent, name) for name in own if real not in seen]
        seen.add(real)
        tables += [path for path in files if kind_of(path) not in ("", ".json")]
        left_out += [path for path in files if path.name.lower().endswith(_LEFT_OUT)]
    for path in tables:
        text_of(str(path), f"the file name {str(path)!a}")
    return sorted(tables), sorted(set(left_out) - set(tables))


def strict_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield location and values of each row; raise DataError if the file or a row cannot be read."""
    for row in rows(path):
        location = f"{path}, {row.position}"
        if row.fault:
            raise DataError(f"{location}: {row.fault}")
        yield location, row.values


def num_rows(path: Path) -> int:
    """Return the number of rows, including those that cannot be read; raises as `rows` does."""
    if kind_of(path) in columnar.SUFFIXES and path.is_file():
        return columnar.num_rows(path)
    return sum(1 for _ in rows(path))


def rows(path: Path, columns: Sequence[str] | None = None, *, start: int = 0) -> Iterator[Row]:
    """Yield the rows from number `start` on, in bounded memory; a row that cannot be read has a `fault`.

    The suffix decides how a file is read. A `.json` file holds one list of objects, which is read as a whole,
    or JSONL. `columns` are those to read, None for all; in JSONL a row may lack some of them. Whole row
    groups of a Parquet file are skipped without reading. Raise DataError if the file is missing, broken or
    has another suffix, or it has no such column.
    """
    readers = {
        ".parquet": _columnar_rows,
        ".arrow": _columnar_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".json": _json_file_rows,
    }
    kind = kind_of(path)
    if not kind:
        raise DataError(f"{path}: tables end in {', '.join(SUFFIXES)}, or .json; convert it to one of these")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        yield from readers.get(kind, _json_rows)(path, columns, start)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _open(path: Path) -> IO[bytes]:
    opener: Any = gzip.open if path.name.lower().endswith(".gz") else open
    return opener(path, "rb")


def json_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object on a line; raise DataError if there is none, or the line is too long."""
    if len(line) > _MAX_LINE_BYTES:
        raise DataError(f"longer than {_MAX_LINE_BYTES:,} bytes")
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"no JSON: {error}") from None
    return _object(values)


def _object(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise DataError(f"a {type(values).__name__} instead of a JSON object")
    for name, value in values.items():
        text_of(name, "a column's name")
        if isinstance(value, float) and is_missing(value):
            values[name] = None
    return values


def _json_file_rows(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Row]:
    """Yield the objects of a list; a file that begins with another value is read as JSONL."""
    with _open(path) as file:
        data = file.read(_MAX_JSON_BYTES + 1).removeprefix(codecs.BOM_UTF8)
    if not data.lstrip().startswith(b"["):
        yield from _json_rows(path, columns, start)
        return
    if len(data) > _MAX_JSON_BYTES:
        raise DataError(f"{path}: a list in JSON is read as a whole and may have 1 GiB; convert it to JSONL")
    try:
        items = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON: {error}") from None
    for number, item in enumerate(items[start:], start):
        yield _read_row(Row(path.name, number), columns, _object, item)


def _read_row(
    row: Row, columns: Sequence[str] | None, read: Callable[..., dict[str, Any]], *data: Any
) -> Row:
    """Return the row with the values that `read` makes of the data, or the fault that it raises."""
    try:
        values = read(*data)
    except DataError as error:
        return replace(row, fault=str(error))
    return replace(row, values={name: values[name] for name in columns or values if name in values})


def _json_rows(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Row]:
    with _open(path) as file:
        lines = ((at, line) for at, line in enumerate(_lines(file), 1) if line.strip())
        for number, (at, line) in enumerate(lines):
            if at == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if number >= start:
                yield _read_row(Row(path.name, number, line=at), columns, json_object, line)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines; one that is longer than the limit is cut one byte behind it."""
    while line := file.readline(_MAX_LINE_BYTES + 1):
        yield line
        while len(line) > _MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE_BYTES + 1)


def _csv_rows(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Row]:
    csv.field_size_limit(_MAX_LINE_BYTES)
    # Bytes that are not UTF-8 become surrogates, which `text_of` refuses row by row.
    with (
        _open(path) as opened,
        io.TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        heading = file.readline(_MAX_LINE_BYTES)
        reader = _csv_reader(path, chain([heading], file), heading)
        names, number, line = None, 0, 1
        try:
            for fields in reader:
                first, line = line, reader.line_num + 1
                if fields and names is None:
                    names = [text_of(name, f"{path}: the heading") for name in fields]
                    _check_columns(path, columns, names)
                elif fields:
                    if number >= start:
                        yield _read_row(
                            Row(path.name, number, line=first), columns, _csv_values, names, fields
                        )
                    number += 1
        except csv.Error as error:
            raise DataError(
                f"{path}: line {line}: {error}. A field that begins with a double quote ends with one, "
                "and double quotes in it are doubled"
            ) from None
        if names is None:
            _check_columns(path, columns, ())


def _csv_reader(path: Path, lines: Iterable[str], heading: str) -> Any:
    """Return a reader; in TSV quotes are text, and in CSV the heading decides between comma and semicolon."""
    if kind_of(path) == ".tsv":
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    delimiter = ";" if heading.count(";") > heading.count(",") else ","
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _csv_values(names: Sequence[str], fields: Sequence[str]) -> dict[str, Any]:
    if len(fields) != len(names):
        raise DataError("more or fewer fields than the heading has")
    return dict(zip(names, fields, strict=True))


def _columnar_rows(path: Path, columns: Sequence[str] | None, start: int) -> Iterator[Row]:
    names, labels = columnar.names_and_labels(path)
    _check_columns(path, columns, names)
    for first, batch in columnar.batches(path, columns, start):
        for index in range(len(batch)):
            yield _read_row(Row(path.name, first + index), None, _columnar_values, batch, index, labels)


def _columnar_values(batch: Any, index: int, labels: columnar.Labels) -> dict[str, Any]:
    return _object(columnar.row_values(batch, index, labels))


def _check_columns(path: Path, columns: Sequence[str] | None, names: Sequence[str]) -> None:
    missing = [name for name in columns or () if name not in names]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}. Columns: {', '.join(names) or 'none'}")
