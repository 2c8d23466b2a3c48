"""Write rows of pairs to a table: JSONL, or Parquet where the table holds the images."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from muco.io.atomic import atomic_file
from muco.io.columns import PairColumns, embedded_image, has_image, image_list, image_name
from muco.io.table_text import text_list, text_of

_BATCH_ROWS = 256
_LIST_PARTS = ("query_text", "negative_text", "negative_image")
"""Parts of a pair that a row may have several of."""


class TableWriter(ABC):
    """Takes the rows of a table one by one."""

    @abstractmethod
    def add(self, values: Mapping[str, Any]) -> None:
        """Write a row."""


@contextmanager
def table_writer(path: Path, columns: PairColumns) -> Generator[TableWriter]:
    """Yield the writer of a table, `.jsonl` or `.parquet`, which is there when the block ends well."""
    with atomic_file(path) as file:
        if path.suffix == ".jsonl":
            yield _JsonlWriter(file)
        else:
            writer = _ParquetWriter(file, columns)
            yield writer
            writer.close()


class _JsonlWriter(TableWriter):
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")


class _ParquetWriter(TableWriter):
    """Images as `datasets` writes them; columns that may hold several things of a row are lists."""

    def __init__(self, file: BinaryIO, columns: PairColumns) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._columns = {name: part for part, name in columns.parts().items()}
        text = pa.string()
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        types = {name: image if part.endswith("_image") else text for name, part in self._columns.items()}
        self._lists = {name for name, part in self._columns.items() if part in _LIST_PARTS}
        fields = [(name, pa.list_(kind) if name in self._lists else kind) for name, kind in types.items()]
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, values: Mapping[str, Any]) -> None:
        self._rows.append({name: self._plain(name, values.get(name)) for name in self._columns})
        if len(self._rows) == _BATCH_ROWS:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the file's end."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def _plain(self, name: str, value: Any) -> Any:
        if self._columns[name].endswith("_image"):
            items: list[Any] = [_image(each) for each in image_list(value) if has_image(each)]
        else:
            items = text_list(value, name) if name in self._lists else [text_of(value, name)]
        return items if name in self._lists else next(iter(items), None)


def _image(value: Any) -> dict[str, Any]:
    data = embedded_image(value)
    return {"bytes": data, "path": image_name(value) if data is None else None}
