"""A retrieval test of your own, from a table of pairs, or from tables of queries and candidates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError, did_you_mean
from muco.core.image import ImageDecoding
from muco.core.sample import Content
from muco.core.suite import Suite, Task
from muco.io.columns import PairColumns
from muco.io.image_files import ImageFiles, TextAndImage
from muco.io.table_text import text_list, text_of
from muco.io.tables import strict_rows
from muco.plugins.datasets.pairs.retrieval import read_retrieval
from muco.plugins.datasets.pairs.table import PairTable

MetricName = Annotated[str, Field(pattern=r"^((precision|hit|recall|ndcg)@[1-9]\d*|mrr)$")]


_TWO_TABLES = ("queries", "candidates", "image_decoding", "text", "image", "id", "relevant", "among")
"""Settings of the layout with a table of queries and one of candidates."""


class PairsSuite(Suite):
    """Search your own candidates.

    With `columns`, `data` is a table as the source `pairs` reads it: the candidates are its distinct targets.
    Without, a table of queries names the right ones in a table of candidates. Where a list is expected, a
    text that holds one will do, as in CSV.
    """

    class Config(ComponentConfig):
        data: Annotated[str, Field(min_length=1)]
        """With `columns`, a table of pairs or a folder of them; else the folder of the tables below."""
        columns: PairColumns | None = None
        """The column of each part of a pair, as in the source `pairs`. The settings from `queries` to `among`
        are for the other layout, without `columns`."""
        images: str | None = None
        """The folder or archive that image paths start from; by default the folder of the tables."""
        queries: str = "queries.jsonl"
        """The table of queries, below `data`."""
        candidates: str = "candidates.jsonl"
        """The table of candidates, below `data`."""
        image_decoding: ImageDecoding = "faithful"
        """`faithful`: transparency on white, 16-bit grey scaled to 8 bits, EXIF orientation applied; `plain`:
        Pillow's `convert("RGB")`."""
        text: str = "text"
        """The column of texts, in both tables."""
        image: str = "image"
        """The column of image paths, in both tables."""
        id: str = "id"
        """The column that names a candidate."""
        relevant: str = "relevant"
        """The queries' column of right candidates: an id, or a list of ids."""
        among: str = "among"
        """The queries' column of the candidates that a query is searched among; without it, all."""
        metric: MetricName = "precision@1"
        """The task's score."""
        more_metrics: tuple[MetricName, ...] = ("recall@1", "recall@5", "recall@10", "ndcg@10", "mrr")
        """Metrics that are reported beside the score."""

        @model_validator(mode="after")
        def _one_layout(self) -> PairsSuite.Config:
            fields = type(self).model_fields
            # A saved recipe names every setting: those with their defaults mean nothing.
            both = [name for name in _TWO_TABLES if getattr(self, name) != fields[name].default]
            if self.columns and both:
                raise ValueError(f"`{'`, `'.join(both)}` and `columns` are for different layouts: remove one")
            return self

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return config.columns.needs() if config.columns else frozenset({"image_targets"})

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = Path(expanduser(config.data))
        self.images = ImageFiles.below(config.images, self.folder, decoding=config.image_decoding)
        self._unseen: list[str] = []
        columns = config.columns
        self._pairs = PairTable(config.data, columns, config.images) if columns else None

    def verify_data(self) -> None:
        """Validate the user's tables completely before encoding."""
        list(self.tasks())

    def tasks(self) -> Iterable[Task]:
        yield self._task_of_pairs() if self._pairs else self._task_of_two_tables()

    def _task_of_pairs(self) -> Task:
        assert self._pairs is not None
        retrieval = read_retrieval(self._pairs)
        return self._task(retrieval.queries, retrieval.pool, retrieval.relevant)

    def _task_of_two_tables(self) -> Task:
        config = self.config
        if self.folder.is_file():
            raise DataError(
                f"{self.folder} is a table of pairs: set `columns` to say what its columns are, for example "
                "{query_text: caption, target_image: photo}"
            )
        self._unseen = self._named_columns()
        pool, indices, num_empty = self._read_pool(self.folder / config.candidates)
        path = self.folder / config.queries
        queries: list[TextAndImage] = []
        relevant: list[list[int]] = []
        among: list[list[int] | None] = []
        for location, row in self._rows(path):
            query = self._content(row, location)
            if not any(query):
                raise DataError(self._no_content(row, location))
            queries.append(query)
            right = self._ids(row, config.relevant, location)
            if not right:
                raise DataError(f"{location}: no right candidate in column {config.relevant!r}")
            relevant.append(_indices(right, indices, location))
            own = self._ids(row, config.among, location)
            among.append(_indices(own, indices, location) if own else None)
            if own and not set(right) <= set(own):
                raise DataError(f"{location}: a right candidate is not in column {config.among!r}")
        if not queries:
            raise DataError(f"{path}: no query")
        if self._unseen:
            raise DataError(f"{self.folder}: no row of the tables has a column {', '.join(self._unseen)}")
        self.images.check((path for _, path in (*queries, *pool)), hint="Put them there, or set `images`.")
        everything = range(len(pool))
        return self._task(
            self.images.contents(queries),
            self.images.contents(pool),
            relevant,
            candidates=[own or everything for own in among] if any(among) else None,
            warnings=(f"pairs: {num_empty:,} candidates have neither text nor image",) if num_empty else (),
        )

    def _task(
        self, queries: Sequence[Content], pool: Sequence[Content], relevant: list[list[int]], **more: Any
    ) -> Task:
        config = self.config
        return Task(
            name="pairs",
            meta_task="retrieval",
            queries=queries,
            pool=pool,
            relevant=relevant,
            metric=config.metric,
            more_metrics=tuple(name for name in config.more_metrics if name != config.metric),
            **{"candidates": None, **more},
        )

    def _named_columns(self) -> list[str]:
        """Return the names of columns that the user chose; the tables may lack those of the defaults."""
        fields = type(self.config).model_fields
        parts = ("text", "image", "id", "relevant", "among")
        chosen = {part: getattr(self.config, part) for part in parts}
        return [name for part, name in chosen.items() if name != fields[part].default]

    def _rows(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        for location, row in strict_rows(path):
            self._unseen = [name for name in self._unseen if name not in row]
            yield location, row

    def _read_pool(self, path: Path) -> tuple[list[TextAndImage], dict[str, int], int]:
        """Return the candidates, equal ones once, the index of each id, and how many ids have no content."""
        pool: dict[TextAndImage, int] = {}
        indices: dict[str, int] = {}
        num_empty = 0
        for location, row in self._rows(path):
            name = text_of(row.get(self.config.id), f"{location}: {self.config.id}")
            if not name:
                raise DataError(f"{location}: no id in column {self.config.id!r}. Columns: {', '.join(row)}")
            if name in indices:
                raise DataError(f"{location}: a second candidate with id {name!r}")
            content = self._content(row, location)
            num_empty += not any(content)
            if num_empty == len(indices) + 1:  # a column's name is wrong, rather than a candidate
                raise DataError(self._no_content(row, location))
            indices[name] = pool.setdefault(content, len(pool))
        if not pool:
            raise DataError(f"{path}: no candidate")
        return list(pool), indices, num_empty

    def _content(self, row: Mapping[str, Any], location: str) -> TextAndImage:
        text, image = (
            text_of(row.get(name), f"{location}: {name}") for name in (self.config.text, self.config.image)
        )
        return text, image

    def _no_content(self, row: Mapping[str, Any], location: str) -> str:
        return (
            f"{location}: neither text in column {self.config.text!r} nor an image path in "
            f"{self.config.image!r}. Columns: {', '.join(row)}"
        )

    def _ids(self, row: Mapping[str, Any], column: str, location: str) -> list[str]:
        return text_list(row.get(column), f"{location}: {column}")


def _indices(names: list[str], indices: Mapping[str, int], location: str) -> list[int]:
    for name in names:
        if name not in indices:
            near = did_you_mean(name, list(indices)[:10_000])
            raise DataError(f"{location}: {name!r} is not among the candidates.{near}")
    return list(dict.fromkeys(indices[name] for name in names))
