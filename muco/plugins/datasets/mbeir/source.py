"""M-BEIR: instructed queries against pools of candidates, each text, image or both."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError
from muco.core.sample import Content, Pair, Sample
from muco.io.cache import cached_database
from muco.io.table_text import text_of
from muco.io.tables import Row, json_object
from muco.plugins.datasets.table_source import TableSource, existing, revision_of

DATASETS = (
    "visualnews",
    "fashion200k",
    "webqa",
    "edis",
    "nights",
    "oven",
    "infoseek",
    "fashioniq",
    "cirr",
    "mscoco",
)
"""By the number before the colon of a query's or candidate's id."""

_GET = (
    "Fetch it with `hf download --repo-type dataset TIGER-Lab/M-BEIR --local-dir M-BEIR`: 1.5 million "
    "queries, 5.6 million candidates, 170 GB of images in four parts, which are compressed and written "
    "once without, to the cache folder."
)
_ENDS = (".", "?", "!")
_QUOTES = "\"'"

Entry = tuple[str, str]
"""Text and image path of a candidate."""


class MBEIR(TableSource):
    """Queries with an instruction drawn from four, and the candidates that answer them.

    References:
        Wei et al. 2023, arXiv:2311.17136: M-BEIR, `TIGER-Lab/M-BEIR`; the tidying of texts is UniIR's.
    """

    class Config(ComponentConfig):
        path: str
        """The folder of the data set."""
        queries: tuple[str, ...] = ("query/union_train/mbeir_union_up_train.jsonl",)
        """Files of queries, below `path`."""
        candidates: tuple[str, ...] = ("cand_pool/global/mbeir_union_train_cand_pool.jsonl",)
        """Files of candidates, below `path`; together they hold every one that the queries name."""
        instructions: str = "instructions/query_instructions.tsv"
        """Below `path`."""
        images: str | None = None
        """Where the images lie, as files or in zip and tar archives; by default below `path`."""
        limit: PositiveInt | None = None
        """The first so many queries of each file."""
        max_positives: PositiveInt = 1
        """A query with several right candidates has a pair for each of the first so many."""
        num_negatives: NonNegativeInt = 0
        """The first so many hard negatives of a query; UniIR trains without."""
        tidy_texts: bool = True
        """Strip texts and their quotes, begin with a capital, end with a full stop, as UniIR does."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"image_targets"})

    def tables(self) -> Sequence[Path]:
        return [self._file(name) for name in self.config.queries]

    def columns(self) -> None:
        return None

    def revision(self) -> str:
        pools = [self._file(name) for name in self.config.candidates]
        return revision_of([*self.tables(), *pools, self._file(self.config.instructions)])

    def names_in(self, row: Row) -> Iterator[str]:
        yield from filter(None, [row.text("query_img_path")])
        for did in (*self._positives(row), *self._negatives(row)):
            yield from filter(None, [self._candidate(did)[1]])

    def sample_of(self, row: Row) -> Sample:
        qid = row.text("qid")
        right = [self._candidate(did) for did in self._positives(row)]
        if not right:
            raise DataError(f"query {qid}: no positive")
        name = row.text("query_img_path")
        text = self._tidied(row.text("query_txt"))
        if not (text or name):
            raise DataError(f"query {qid}: neither text nor image")
        wrong = tuple(self._content(self._candidate(did)) for did in self._negatives(row))
        pairs = tuple(
            Pair(
                task=f"task{row.values.get('task_id')}",
                queries=tuple(
                    Content(f"{prompt} {text}".strip()) for prompt in self._prompts(row, candidate)
                ),
                target=self._content(candidate),
                negatives=wrong,
            )
            for candidate in right
        )
        images = (self.images.image(name),) if name else ()
        return Sample(qid, f"mbeir/{_dataset(qid)}", images, pairs)

    def _file(self, name: str) -> Path:
        return existing(str(Path(self.config.path).expanduser() / name), what=_GET)

    def _positives(self, row: Row) -> list[str]:
        return _ids(row, "pos_cand_list")[: self.config.max_positives]

    def _negatives(self, row: Row) -> list[str]:
        return _ids(row, "neg_cand_list")[: self.config.num_negatives]

    def _prompts(self, row: Row, candidate: Entry) -> tuple[str, ...]:
        text, image = candidate
        wanted = ",".join(kind for kind, there in (("image", image), ("text", text)) if there)
        key = (row.text("qid").split(":")[0], row.text("query_modality"), wanted)
        if key not in self._instructions:
            raise DataError(
                f"{self.config.instructions} has no instruction for data set {key[0]}, {key[1]} -> {key[2]}"
            )
        return self._instructions[key]

    @cached_property
    def _instructions(self) -> dict[tuple[str, str, str], tuple[str, ...]]:
        """Return the prompts by data set's number, query modality and candidate modality."""
        path = self._file(self.config.instructions)
        found: dict[tuple[str, str, str], tuple[str, ...]] = {}
        with open(path, encoding="utf-8-sig", newline="") as file:
            for line in csv.DictReader(file, dialect="excel-tab"):
                try:
                    key = (line["dataset_id"], line["query_modality"], line["cand_modality"])
                except KeyError as error:
                    raise DataError(f"{path}: no column {error}") from None
                prompts = (line.get(f"prompt_{number}") for number in range(1, 5))
                found[key] = tuple(prompt.strip() for prompt in prompts if prompt and prompt.strip())
        return found

    def _content(self, candidate: Entry) -> Content:
        text, image = candidate
        return Content(text, (self.images.image(image),) if image else ())

    def _candidate(self, did: str) -> Entry:
        """Return a candidate, read from where the list of pools says that its line begins."""
        query = "SELECT pool, place, size FROM candidates WHERE did = ?"
        found = self._pools.execute(query, (did,)).fetchone()
        if found is None:
            raise DataError(f"candidate {did} is in none of {', '.join(self.config.candidates)}")
        pool, place, size = found
        record = json.loads(os.pread(self._open_pools[pool], size, place))
        text = self._tidied(text_of(record.get("txt"), f"candidate {did}: txt"))
        image = text_of(record.get("img_path"), f"candidate {did}: img_path")
        if not (text or image):
            raise DataError(f"candidate {did} has neither text nor image")
        return text, image

    @cached_property
    def _open_pools(self) -> list[int]:
        return [os.open(self._file(name), os.O_RDONLY) for name in self.config.candidates]

    @cached_property
    def _pools(self) -> sqlite3.Connection:
        """Return where each candidate's line begins, listed once and kept in the cache folder."""
        paths = [self._file(name).resolve() for name in self.config.candidates]
        revisions = "-".join(revision_of([path]) for path in paths)
        return cached_database(f"pools/{revisions}.sqlite", lambda beside: _list_candidates(beside, paths))

    def _tidied(self, text: str) -> str:
        if not self.config.tidy_texts:
            return text
        text = text.strip().strip(_QUOTES).strip()
        if not text:
            return ""
        text = text[0].upper() + text[1:]
        return text if text.endswith(_ENDS) else f"{text}."


def _ids(row: Row, column: str) -> list[str]:
    """Return ids of candidates; some files have null for none."""
    found = row.values.get(column) or []
    if not isinstance(found, list):
        raise DataError(f"{column} is a {type(found).__name__}, not a list")
    return [text_of(did, column) for did in found]


def _dataset(qid: str) -> str:
    number = qid.split(":")[0]
    if not number.isdecimal() or int(number) >= len(DATASETS):
        raise DataError(f"query {qid!r}: an id begins with its data set's number and a colon")
    return DATASETS[int(number)]


def _list_candidates(place: Path, pools: Sequence[Path]) -> None:
    with closing(sqlite3.connect(place)) as index:
        index.execute("PRAGMA synchronous = OFF")
        index.execute(
            "CREATE TABLE candidates (did TEXT PRIMARY KEY, pool INT, place INT, size INT) WITHOUT ROWID"
        )
        for pool, path in enumerate(pools):
            index.executemany("INSERT OR IGNORE INTO candidates VALUES (?, ?, ?, ?)", _lines(pool, path))
        index.commit()


def _lines(pool: int, path: Path) -> Iterator[tuple[str, int, int, int]]:
    with open(path, "rb") as file:
        place = 0
        while line := file.readline():
            if line.strip():
                # A candidate that cannot be read is missed by the queries that name it.
                with suppress(DataError, KeyError):
                    yield text_of(str(json_object(line)["did"]), "did"), pool, place, len(line)
            place += len(line)
