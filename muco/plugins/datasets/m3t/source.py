"""M3T: photographs from the web, each with seven questions and answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from muco.core.component import ComponentConfig
from muco.core.errors import DataError
from muco.core.sample import Content, Pair, Sample
from muco.io.image_files import ImageFiles
from muco.io.table_text import text_of, without_token
from muco.io.tables import Row
from muco.plugins.datasets.table_source import TableSource, existing

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

_GET = (
    "Fetch the table with `hf download --repo-type dataset naver-ai/M3T --local-dir M3T`: 5 million rows, "
    "35 million pairs. It holds no images: `muco data download` fetches them by URL, of the order of 1 TB."
)
_COLUMNS = ("qry", "pos_text", "neg_text", "qry_sentence", "qry_image_path", "pos_image_path")


class M3T(TableSource):
    """Seven turns a photograph: a classification, four questions, a creative one, a retrieval.

    References:
        Gu et al. 2026, arXiv:2602.06393: M3T, `naver-ai/M3T`.
    """

    class Config(ComponentConfig):
        path: str
        """The folder of the data set, or its Parquet file."""
        file: str = "M3T_train/M3T.parquet"
        """Below `path`, where that is a folder."""
        images: str | None = None
        """Where the images lie, as files or in zip and tar archives; by default below `path`."""
        image_column: str = "qry_image_path"
        """Names each row's image: a path, or the URL that it was downloaded by."""
        num_negatives: Annotated[int, Field(ge=0, le=1)] = 0
        """1 takes the hard negative that a turn has; the paper pre-trains without."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = Path(config.path).expanduser()
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self.images = ImageFiles([Path(config.images).expanduser() if config.images else self.folder])

    def tables(self) -> Sequence[Path]:
        path = existing(self.config.path, what=_GET)
        return [existing(str(path / self.config.file), what=_GET) if path.is_dir() else path]

    def columns(self) -> Sequence[str]:
        return tuple(dict.fromkeys((*_COLUMNS, self.config.image_column)))

    def names_in(self, row: Row) -> Iterator[str]:
        yield from filter(None, [row.text(self.config.image_column)])

    def sample_of(self, row: Row) -> Sample:
        asked, answers = _turns(row, "qry"), _turns(row, "pos_text")
        if len(asked) != len(answers):
            raise DataError(f"{len(asked)} queries and {len(answers)} answers")
        if row.text("pos_image_path"):
            raise DataError("pos_image_path is set, though M3T's answers are text")
        name = row.text(self.config.image_column)
        if not name:
            raise DataError(f"no image: {self.config.image_column} is empty")
        negatives = self._negatives(row, len(asked))
        pairs = tuple(
            Pair(
                TASKS[turn] if len(asked) == len(TASKS) else f"turn_{turn}",
                tuple(_wordings(asked[turn], turn)),
                _answer(answers[turn], turn),
                negatives[turn],
            )
            for turn in range(len(asked))
        )
        image = self.images.image(name)
        return Sample(f"{row.number:09d}", "m3t", (image,), pairs, row.text("qry_sentence"))

    def _negatives(self, row: Row, number: int) -> list[tuple[Content, ...]]:
        if not self.config.num_negatives:
            return [()] * number
        texts = [without_token(text_of(text, "neg_text")) for text in _turns(row, "neg_text")]
        if len(texts) != number:
            raise DataError(f"{number} queries and {len(texts)} hard negatives")
        return [(Content(text),) if text else () for text in texts]


def _turns(row: Row, column: str) -> list[Any]:
    found = row.values.get(column)
    if not isinstance(found, list | tuple) or not found:
        kind = type(found).__name__
        raise DataError(f"{column} holds {kind} where a list of turns belongs; pairs are for source `mmeb`")
    return list(found)


def _wordings(wordings: Any, turn: int) -> Iterator[Content]:
    """Yield the paraphrases of a turn's query; its image is the sample's, whichever turn comes first."""
    for text in wordings if isinstance(wordings, list | tuple) else [wordings]:
        said = without_token(text_of(text, "qry"))
        if not said:
            raise DataError(f"a query of turn {turn + 1} is empty")
        yield Content(said)


def _answer(text: Any, turn: int) -> Content:
    said = without_token(text_of(text, "pos_text"))
    if not said:
        raise DataError(f"no positive: the answer of turn {turn + 1} is empty")
    return Content(said)
