"""M3T: photographs from the web, each with seven questions and answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from muco.core.component import ComponentConfig
from muco.core.errors import DataError
from muco.core.sample import Content, Pair, Sample
from muco.io.image_files import PublicDecoding
from muco.io.table_source import TableSource, existing
from muco.io.table_text import text_of, without_image_token
from muco.io.tables import Row

TASKS = (
    "classification",
    "global_vqa_1",
    "global_vqa_2",
    "local_vqa_1",
    "local_vqa_2",
    "creative",
    "retrieval",
)
"""The seven turns in the order in which a row holds them."""

_DOWNLOAD = (
    "Fetch the table with `hf download --repo-type dataset naver-ai/M3T --local-dir M3T`: 5 million rows, "
    "35 million pairs. It holds no images: `muco data download` fetches them by URL, about 1 TB."
)
_COLUMNS = ("qry", "pos_text", "neg_text", "qry_sentence", "qry_image_path", "pos_image_path")


class M3T(TableSource):
    """Seven turns for each photograph: a classification, four questions, a creative one, a retrieval.

    `muco data generate` writes tables in the same layout, with names for their turns.

    References:
        Gu et al. 2026, arXiv:2602.06393: M3T, `naver-ai/M3T`.
    """

    class Config(ComponentConfig):
        path: str
        """The folder of the data set, or its table: Parquet or JSONL."""
        file: str = "M3T_train/M3T.parquet"
        """The table below `path`, if that is a folder; `*` stands for several, the parts of one, say."""
        images: str | None = None
        """The folder of the images, as files or in zip and tar archives; by default that of `path`."""
        image_decoding: PublicDecoding = "plain"
        image_column: str = "qry_image_path"
        """Names each row's image: a path, or the URL that it was downloaded from."""
        task_column: str | None = None
        """Names each row's turns; by default seven turns have the names of M3T's."""
        num_negatives: Annotated[int, Field(ge=0, le=1)] = 0
        """1 reads the hard negative of each turn; the paper pre-trains without."""

    def tables(self) -> Sequence[Path]:
        path = existing(self.config.path, hint=_DOWNLOAD)
        if not path.is_dir():
            return [path]
        if "*" in self.config.file and (tables := sorted(path.glob(self.config.file))):
            return tables
        return [existing(path / self.config.file, hint=_DOWNLOAD)]

    def columns(self) -> Sequence[str]:
        named = filter(None, (self.config.image_column, self.config.task_column))
        return tuple(dict.fromkeys((*_COLUMNS, *named)))

    def image_names_of(self, row: Row) -> Iterator[str]:
        yield from filter(None, [row.text(self.config.image_column)])

    def sample_of(self, row: Row) -> Sample:
        queries, answers = _turns(row, "qry"), _turns(row, "pos_text")
        if len(queries) != len(answers):
            raise DataError(f"{len(queries)} queries and {len(answers)} answers")
        if row.text("pos_image_path"):
            raise DataError("pos_image_path is set, though M3T's answers are text")
        name = row.text(self.config.image_column)
        if not name:
            raise DataError(f"no image: {self.config.image_column} is empty")
        tasks = self._tasks(row, len(queries))
        pairs = tuple(
            Pair(
                tasks[turn],
                tuple(_wordings(queries[turn], turn)),
                _text(answers[turn], "pos_text", f"no positive: the answer of turn {turn + 1} is empty"),
                negatives,
            )
            for turn, negatives in enumerate(self._negatives(row, len(queries)))
        )
        return Sample(f"{row.number:09d}", "m3t", (self.images.image(name),), pairs, row.text("qry_sentence"))

    def _tasks(self, row: Row, num_turns: int) -> Sequence[str]:
        column = self.config.task_column
        if column is None:
            return TASKS if num_turns == len(TASKS) else [f"turn_{turn}" for turn in range(num_turns)]
        names = row.values.get(column)
        if not isinstance(names, list | tuple) or len(names) != num_turns:
            raise DataError(f"{column} is no list of names for {num_turns} turns")
        return [text_of(name, column) for name in names]

    def _negatives(self, row: Row, num_turns: int) -> list[tuple[Content, ...]]:
        if not self.config.num_negatives:
            return [()] * num_turns
        texts = [_clean(text, "neg_text") for text in _turns(row, "neg_text")]
        if len(texts) != num_turns:
            raise DataError(f"{num_turns} queries and {len(texts)} hard negatives")
        return [(Content(text),) if text else () for text in texts]


def _turns(row: Row, column: str) -> list[Any]:
    turns = row.values.get(column)
    if not isinstance(turns, list | tuple) or not turns:
        kind = type(turns).__name__
        raise DataError(f"{column} is a {kind}, not a list of turns; source `mmeb` reads single pairs")
    return list(turns)


def _wordings(wordings: Any, turn: int) -> Iterator[Content]:
    """Yield the paraphrases of a turn's query; the image belongs to the sample, not to one turn."""
    for text in wordings if isinstance(wordings, list | tuple) else [wordings]:
        yield _text(text, "qry", f"a query of turn {turn + 1} is empty")


def _text(value: Any, column: str, if_empty: str) -> Content:
    text = _clean(value, column)
    if not text:
        raise DataError(if_empty)
    return Content(text)


def _clean(value: Any, column: str) -> str:
    """Return a turn's text without image token. Its last line break stays, for `line_breaks: data`."""
    text = text_of(value, column)
    cleaned = without_image_token(text)
    return f"{cleaned}\n" if cleaned and text.endswith("\n") else cleaned
