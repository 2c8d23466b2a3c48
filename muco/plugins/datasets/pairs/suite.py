"""One's own queries and candidates, from tables of texts and image paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError, did_you_mean
from muco.core.suite import Suite, Task
from muco.io.image_files import ImageFiles, TextAndImage
from muco.io.table_text import listed, text_of
from muco.io.tables import whole_rows

MetricName = Annotated[str, Field(pattern=r"^((precision|hit|recall|ndcg)@[1-9]\d*|mrr)$")]


class PairsSuite(Suite):
    """Search one's own candidates: a table of queries, a table of candidates, and which ones are right.

    Tables are JSONL, CSV, TSV or Parquet. A list in a cell is one, or text that holds one, as CSV has it.
    """

    class Config(ComponentConfig):
        data: Annotated[str, Field(min_length=1)]
        """The folder of the tables."""
        queries: str = "queries.jsonl"
        """The table of queries, below `data`."""
        candidates: str = "candidates.jsonl"
        """The table of candidates, below `data`."""
        images: str | None = None
        """The folder or archive that image paths start from; by default `data`."""
        text: str = "text"
        """The column of texts, in both tables."""
        image: str = "image"
        """The column of image paths, in both tables."""
        id: str = "id"
        """The column that names a candidate."""
        relevant: str = "relevant"
        """The queries' column of right candidates: an id, or a list of them."""
        among: str = "among"
        """The queries' column of the candidates that one is searched among; without it, all."""
        metric: MetricName = "precision@1"
        """The task's score."""
        more_metrics: tuple[MetricName, ...] = ("recall@1", "recall@5", "recall@10", "ndcg@10", "mrr")
        """Told beside it."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"image_targets"})

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = Path(config.data).expanduser()
        self.images = ImageFiles([Path(config.images).expanduser() if config.images else self.folder])

    def verify_data(self) -> None:
        for _ in self.tasks():  # tables of one's own are read whole: theirs are the mistakes
            pass

    def tasks(self) -> Iterable[Task]:
        config = self.config
        pool, places = self._pool(self.folder / config.candidates)
        path = self.folder / config.queries
        queries: list[TextAndImage] = []
        relevant: list[list[int]] = []
        among: list[list[int] | None] = []
        for where, row in whole_rows(path):
            queries.append(self._content(row, where))
            right = self._ids(row, config.relevant, where)
            if not right:
                raise DataError(f"{where}: no right candidate in column {config.relevant!r}")
            relevant.append(_found(right, places, where))
            within = self._ids(row, config.among, where)
            among.append(_found(within, places, where) if within else None)
            if within and not set(right) <= set(within):
                raise DataError(f"{where}: a right candidate is not among those of column {config.among!r}")
        if not queries:
            raise DataError(f"{path}: no query")
        self.images.check((path for _, path in (*queries, *pool)), told="Put them there, or say `images`.")
        everything = range(len(pool))
        yield Task(
            name="pairs",
            meta_task="retrieval",
            queries=self.images.contents(queries),
            pool=self.images.contents(pool),
            candidates=[each or everything for each in among] if any(among) else None,
            relevant=relevant,
            metric=config.metric,
            more_metrics=tuple(each for each in config.more_metrics if each != config.metric),
        )

    def _pool(self, path: Path) -> tuple[list[TextAndImage], dict[str, int]]:
        pool: dict[TextAndImage, int] = {}
        places: dict[str, int] = {}
        for where, row in whole_rows(path):
            name = row.get(self.config.id)
            if name is None or name == "":
                raise DataError(f"{where}: no id in column {self.config.id!r}; there are {', '.join(row)}")
            if str(name) in places:
                raise DataError(f"{where}: a second candidate with id {name!r}")
            places[str(name)] = pool.setdefault(self._content(row, where), len(pool))
        if not pool:
            raise DataError(f"{path}: no candidate")
        return list(pool), places

    def _content(self, row: Mapping[str, Any], where: str) -> TextAndImage:
        content = (
            _written(row.get(self.config.text), f"{where}: {self.config.text}"),
            _written(row.get(self.config.image), f"{where}: {self.config.image}"),
        )
        if not any(content):
            raise DataError(
                f"{where}: neither text in column {self.config.text!r} nor an image path in "
                f"{self.config.image!r}; there are {', '.join(row)}"
            )
        return content

    def _ids(self, row: Mapping[str, Any], column: str, where: str) -> list[str]:
        value = row.get(column)
        if value is None or value == "":
            return []
        if isinstance(value, list):
            return [str(each) for each in cast(list[Any], value)]
        return listed(value, f"{where}: {column}") if isinstance(value, str) else [str(value)]


def _written(value: Any, what: str) -> str:
    """Return a text; a number as it is written."""
    return text_of(str(value) if isinstance(value, int | float) else value, what)


def _found(ids: list[str], places: Mapping[str, int], where: str) -> list[int]:
    for each in ids:
        if each not in places:
            raise DataError(
                f"{where}: {each!r} is not among the candidates.{did_you_mean(each, list(places)[:10_000])}"
            )
    return list(dict.fromkeys(places[each] for each in ids))
