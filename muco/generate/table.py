"""The table of a generation, in the layout that the source `m3t` reads, JSONL or Parquet."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from muco.core.errors import MucoError
from muco.generate.counts import Counts
from muco.generate.inputs import Inputs, Item
from muco.generate.journal import Journal
from muco.generate.requests import Request
from muco.generate.settings import Generation
from muco.generate.steps import Generated, Skipped, Steps, follow
from muco.io.atomic import atomic_file
from muco.io.tables import rows

SUFFIXES = (".jsonl", ".parquet")
_BATCH_ROWS = 1024


class Write(Protocol):
    """Writes one row."""

    def __call__(self, row: dict[str, Any], /) -> None:
        """Write the row."""
        ...


def check_table(path: Path, inputs: Inputs) -> None:
    """Raise MucoError if a table cannot be written there, or would replace another file."""
    if path.suffix not in SUFFIXES:
        raise MucoError(f"{path}: name a table that ends in {' or '.join(SUFFIXES)}")
    if not path.exists():
        return
    for read in filter(None, (inputs.path, inputs.captions_path)):
        if read.exists() and path.samefile(read):
            raise MucoError(f"--to {path} would replace the file that is read. Name another table")
    if not journal_of(path).exists():
        raise MucoError(
            f"{path} exists, but not its answers ({journal_of(path)}): all of them would be paid for again. "
            "Name another table, or delete this one"
        )


def journal_of(path: Path) -> Path:
    """Return the path of a table's journal."""
    return beside(path, "journal.sqlite")


def has_other_prompts(path: Path, steps: Steps) -> bool:
    """Return whether a table exists and its first row is of other prompts, models or kinds than the steps."""
    first = next(rows(path), None) if path.exists() else None
    return first is not None and first.values.get("prompts") != _constants(steps)["prompts"]


def beside(path: Path, suffix: str) -> Path:
    """Return the path of a file beside the table: its journal, its page, its list of skipped images."""
    return path.with_name(f"{path.name}.{suffix}")


def write_table(path: Path, items: Iterable[Item], steps: Steps, journal: Journal) -> Counts:
    """Write the rows of all images that have pairs, in their order, and a list of the others.

    Only settings, images and the journal decide the bytes. The list, `TABLE.skipped.jsonl`, has the image,
    the reason and details of each image that is not in the table.
    """
    counts = Counts()
    constants = _constants(steps)
    with _writer(path) as write, atomic_file(beside(path, "skipped.jsonl")) as skipped:
        for item in items:
            result = follow(steps.result(item), journal.answer)
            if isinstance(result, Request):
                result = _unanswered(result, journal)
            counts.add(item, result)
            if isinstance(result, Generated):
                write(_row(item, result, constants))
            else:
                skipped.write(_line({"image": item.image, "reason": result.reason, "detail": result.detail}))
    return counts


def _unanswered(request: Request, journal: Journal) -> Skipped:
    reason, _, detail = (journal.failure(request.key) or "not_asked: ").partition(": ")
    return Skipped(reason, detail)


def _constants(steps: Steps) -> dict[str, Any]:
    """Return the columns that are equal in all rows."""
    settings: Generation = steps.settings
    stages = (settings.one_stage,) if steps.one_stage else (settings.caption, settings.pairs)
    return {
        "model": stages[-1].model or settings.server.model,
        "caption_model": stages[0].model or settings.server.model,
        "prompts": steps.curriculum.fingerprint(*stages),
    }


def _row(item: Item, result: Generated, constants: dict[str, Any]) -> dict[str, Any]:
    return {
        "qry": [list(pair.queries) for pair in result.pairs],
        "pos_text": [pair.answer for pair in result.pairs],
        "neg_text": ["" for _ in result.pairs],
        "qry_sentence": result.caption,
        "qry_image_path": item.image,
        "pos_image_path": "",
        "tasks": [pair.turn for pair in result.pairs],
        **constants,
        **({"caption_model": ""} if item.caption else {}),
        "prompt_tokens": result.usage.prompt_tokens,
        "completion_tokens": result.usage.completion_tokens,
    }


def _line(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, ensure_ascii=False) + "\n").encode()


@contextmanager
def _writer(path: Path) -> Generator[Write]:
    writer = _parquet_writer if path.suffix == ".parquet" else _jsonl_writer
    with writer(path) as write:
        yield write


@contextmanager
def _jsonl_writer(path: Path) -> Generator[Write]:
    with atomic_file(path) as file:

        def write(row: dict[str, Any]) -> None:
            file.write(_line(row))

        yield write


@contextmanager
def _parquet_writer(path: Path) -> Generator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    text, texts = pa.string(), pa.list_(pa.string())
    types = {
        "qry": pa.list_(texts), "pos_text": texts, "neg_text": texts, "qry_sentence": text,
        "qry_image_path": text, "pos_image_path": text, "tasks": texts, "model": text, "caption_model": text,
        "prompts": text, "prompt_tokens": pa.int64(), "completion_tokens": pa.int64(),
    }  # fmt: skip
    schema = pa.schema(list(types.items()))
    with atomic_file(path) as file, parquet.ParquetWriter(file, schema) as writer:
        batch: list[dict[str, Any]] = []

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            batch.clear()

        def write(row: dict[str, Any]) -> None:
            batch.append(row)
            if len(batch) == _BATCH_ROWS:
                flush()

        yield write
        flush()
