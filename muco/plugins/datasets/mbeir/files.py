"""The files of M-BEIR, as source and suite read them: candidates, instructions, ids, texts."""

from __future__ import annotations

import csv
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from muco.core.errors import DataError
from muco.io.cache import cached_database
from muco.io.image_files import ImageFiles, TextAndImage
from muco.io.lazy import LazyContents
from muco.io.table_source import existing, revision_of
from muco.io.table_text import text_of
from muco.io.tables import json_object
from muco.io.untrusted import read_file

DATA_SETS = (
    "visualnews", "fashion200k", "webqa", "edis", "nights",
    "oven", "infoseek", "fashioniq", "cirr", "mscoco",
)  # fmt: skip
"""By their number, with which the ids of their queries and candidates begin."""

INSTRUCTIONS = "instructions/query_instructions.tsv"

_ROWS_EACH = 10**7
"""An id as one integer: the data set's number times this, plus the row's."""


@dataclass(frozen=True)
class Kind:
    """A kind of search."""

    query: str
    """Modalities, as the files write them."""
    target: str
    group: str
    """From single (S) or several (M) modalities to the same."""

    @property
    def name(self) -> str:
        """Name of the average over this kind."""
        return f"{self.query.replace(',', '_')}_to_{self.target.replace(',', '_')}"


KINDS: dict[int, Kind] = {
    0: Kind("text", "image", "S->S"),
    1: Kind("text", "text", "S->S"),
    2: Kind("text", "image,text", "S->M"),
    3: Kind("image", "text", "S->S"),
    4: Kind("image", "image", "S->S"),
    6: Kind("image,text", "text", "M->S"),
    7: Kind("image,text", "image", "M->S"),
    8: Kind("image,text", "image,text", "M->M"),
}
"""By the task id of the files. The groups follow from the modalities; the public tables that give averages of
the four groups are consistent with them."""


def clean(text: str) -> str:
    """Return a text as UniIR cleans it for training and test: a capital first and a full stop last.

    Carriage returns, white space and then double quotes are stripped.
    """
    text = text.replace("\r", "").strip().strip('"')
    return text[:1].upper() + text[1:] + ("." if text and text[-1] not in ".?!" else "")


def query_text(instruction: str, text: str, *, tidy: bool = True) -> str:
    """Return an instruction and a query's text, both cleaned as UniIR does, or as they are."""
    if not tidy:
        return f"{instruction.strip()} {text}".strip()
    return clean(f"{instruction} {clean(text)}".strip())


def number_of(name: str) -> int:
    """Return an id, `dataset:number`, as one integer; raise DataError if it is none."""
    parts = re.fullmatch(r"(\d{1,3}):(\d{1,7})", name, re.ASCII)
    if not parts:
        raise DataError(f"{name!r} is no id; it must be `dataset:number`")
    return int(parts[1]) * _ROWS_EACH + int(parts[2])


def dataset_of(name: str) -> int:
    """Return the number of the data set of an id; raise DataError if there is no such data set."""
    dataset = number_of(name) // _ROWS_EACH
    if dataset >= len(DATA_SETS):
        raise DataError(f"{name!r} is no id; M-BEIR's data sets are numbered 0 to {len(DATA_SETS) - 1}")
    return dataset


def text_and_image(row: Mapping[str, Any], text: str, image: str, modality: str) -> TextAndImage:
    """Return what two columns hold; raise DataError if the column of modalities says something else."""
    content = text_of(row.get(text), text), text_of(row.get(image), image)
    held = {name for name, part in zip(("text", "image"), content, strict=True) if part}
    if held != set(str(row.get(modality)).split(",")):
        raise DataError(f"says {row.get(modality)!r} and holds {','.join(sorted(held)) or 'nothing'}")
    return content


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; raise DataError if it cannot be read."""
    try:
        return read_file(path).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


class Instructions:
    """The four instructions of each data set, query modality and candidate modality."""

    def __init__(self, path: Path) -> None:
        """Read the file; raise DataError if it is missing or lacks a column."""
        self.path = path
        self._prompts: dict[tuple[str, str, str], list[str]] = {}
        table = csv.DictReader(read_lines(path), restval="", delimiter="\t", quoting=csv.QUOTE_NONE)
        for row in table:
            try:
                key = (row["dataset_id"], row["query_modality"], row["cand_modality"])
                self._prompts[key] = [row[f"prompt_{index}"] for index in range(1, 5)]
            except KeyError:
                raise DataError(
                    f"{path}, line {table.line_num}: must have the columns query_modality, cand_modality, "
                    "dataset_name, dataset_id, prompt_1 to prompt_4"
                ) from None

    def prompts(self, dataset: int, query: str, target: str) -> list[str]:
        """Return the four instructions; raise DataError if there are none."""
        try:
            return self._prompts[str(dataset), query, target]
        except KeyError:
            message = f"{self.path}: no instruction for {DATA_SETS[dataset]}, {query} to {target}"
            raise DataError(message) from None


class CandidatePool:
    """The candidates in some files, millions of lines, of which one is read when it is used.

    A list of where each line begins is made once and kept in the cache folder, where all processes share it.
    Memory does not grow with the number of candidates; finding and reading one takes microseconds.
    """

    def __init__(self, paths: Sequence[Path], images: ImageFiles, clean: Callable[[str], str]) -> None:
        """Take the files, their images, and what cleans their texts; raise DataError if a file is missing."""
        self.paths = [existing(path, hint="The suite searches its candidates.") for path in paths]
        self._images, self._clean = images, clean

    @cached_property
    def contents(self) -> LazyContents:
        """The candidates in the order of the files' lines, without those that `check` finds to have no id."""
        return LazyContents(lambda index: self._images.content(*self.read(index)), range(len(self)))

    @cached_property
    def _list(self) -> sqlite3.Connection:
        revisions = "-".join(revision_of([path.resolve()]) for path in self.paths)
        return cached_database(f"candidates-3/{revisions}.sqlite", lambda to: _write_list(to, self.paths))

    @cached_property
    def _files(self) -> list[int]:
        return [os.open(path, os.O_RDONLY) for path in self.paths]

    def __len__(self) -> int:
        ((number,),) = self._list.execute("SELECT count(*) FROM candidates")
        return number

    @property
    def num_empty(self) -> int:
        """How many candidates have neither text nor image."""
        ((number, _),) = self._list.execute("SELECT num_empty, fault FROM summary")
        return number

    def check(self) -> None:
        """Raise DataError if a line holds no candidate, another one's id, or not what its modality says."""
        ((_, fault),) = self._list.execute("SELECT num_empty, fault FROM summary")
        if fault:
            raise DataError(fault)
        if not len(self):
            raise DataError(f"{', '.join(map(str, self.paths))}: no candidate")

    def index_of(self, name: str) -> int:
        """Return the index of the candidate with an id; raise DataError if there is none."""
        query = "SELECT candidate FROM candidates WHERE id = ?"
        for (index,) in self._list.execute(query, (number_of(name),)):
            return index
        raise DataError(f"candidate {name} is not in {', '.join(map(str, self.paths))}")

    def read(self, index: int) -> TextAndImage:
        """Return the cleaned text and the image path of a candidate; both may be empty."""
        query = "SELECT file, offset, size FROM candidates WHERE candidate = ?"
        ((file, offset, size),) = self._list.execute(query, (index,))
        row = json_object(os.pread(self._files[file], size, offset))
        text, image = (text_of(row.get(key), f"candidate {row['did']}: {key}") for key in ("txt", "img_path"))
        return self._clean(text), image


def _write_list(database: sqlite3.Connection, paths: Sequence[Path]) -> None:
    """List the candidates in the order of their lines; one that has no id of its own is left out.

    Only the first fault is written: `CandidatePool.check` reports one, and there may be millions.
    """
    database.execute(
        "CREATE TABLE candidates "
        "(candidate INTEGER PRIMARY KEY, id INT UNIQUE, file INT, offset INT, size INT)"
    )
    database.execute("CREATE TABLE summary (num_empty INT, fault TEXT)")
    index, num_empty, fault = 0, 0, ""
    for file, path in enumerate(paths):
        for number, offset, line in _lines(path):
            try:
                row = json_object(line)
                values = (index, number_of(text_of(row.get("did"), "did")), file, offset, len(line))
                insert = "INSERT OR IGNORE INTO candidates VALUES (?, ?, ?, ?, ?)"
                if not database.execute(insert, values).rowcount:
                    raise DataError(f"a second candidate {row['did']}")
                index += 1
                if row.get("txt") or row.get("img_path"):
                    text_and_image(row, "txt", "img_path", "modality")
                else:
                    num_empty += 1
            except DataError as error:
                fault = fault or f"{path}, line {number}: {error}"
    database.execute("INSERT INTO summary VALUES (?, ?)", (num_empty, fault))


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, offset and bytes of each line that is not empty."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, offset, line
            offset += len(line)
