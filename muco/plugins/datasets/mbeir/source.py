"""M-BEIR: instructed queries against pools of candidates, each text, image or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError
from muco.core.sample import Content, Pair, Sample
from muco.io.image_files import PublicDecoding, TextAndImage
from muco.io.table_source import TableSource, existing, revision_of
from muco.io.table_text import text_of
from muco.io.tables import Row
from muco.plugins.datasets.mbeir.files import (
    DATA_SETS,
    INSTRUCTIONS,
    CandidatePool,
    Instructions,
    clean,
    dataset_of,
    query_text,
)

_DOWNLOAD = (
    "Fetch it with `hf download --repo-type dataset TIGER-Lab/M-BEIR --local-dir M-BEIR`: 1.5 million "
    "queries, 5.6 million candidates, 170 GB of compressed images, which are decompressed once into the "
    "cache folder."
)


class MBEIR(TableSource):
    """Queries with four wordings of an instruction, and the candidates that answer them.

    References:
        Wei et al. 2023, arXiv:2311.17136: M-BEIR, `TIGER-Lab/M-BEIR`; the cleaning of texts is UniIR's.
    """

    class Config(ComponentConfig):
        path: str
        """The folder of the data set."""
        queries: tuple[str, ...] = ("query/union_train/mbeir_union_up_train.jsonl",)
        """Files of queries, below `path`."""
        candidates: tuple[str, ...] = ("cand_pool/global/mbeir_union_train_cand_pool.jsonl",)
        """Files of candidates, below `path`; together they hold every one that the queries name."""
        instructions: str = INSTRUCTIONS
        """The file of instructions, below `path`."""
        images: str | None = None
        """The folder of the images, as files or in zip and tar archives; by default `path`."""
        image_decoding: PublicDecoding = "plain"
        limit: PositiveInt | None = None
        """Read this many queries of each file at most."""
        max_positives: PositiveInt = 1
        """A query with several right candidates has a pair for each of the first so many."""
        num_negatives: NonNegativeInt = 0
        """The number of hard negatives of a query, the first that it has; UniIR trains without."""
        tidy_texts: bool = True
        """Strip texts and their double quotes, begin with a capital, end with a full stop, as UniIR does."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"image_targets"})

    def tables(self) -> Sequence[Path]:
        return self._files(self.config.queries)

    def revision(self) -> str:
        config = self.config
        tables = revision_of(self._files((*config.queries, *config.candidates, config.instructions)))
        return f"{tables}-{self.images.revision()}"

    def image_names_of(self, row: Row) -> Iterator[str]:
        candidates = map(self._candidate, (*self._positives(row), *self._negatives(row)))
        yield from filter(None, (row.text("query_img_path"), *(image for _, image in candidates)))

    def sample_of(self, row: Row) -> Sample:
        qid = row.text("qid")
        dataset = dataset_of(qid)
        positives = [self._candidate(name) for name in self._positives(row)]
        if not positives:
            raise DataError(f"query {qid}: no positive")
        image = row.text("query_img_path")
        text = row.text("query_txt")
        if not (text or image):
            raise DataError(f"query {qid}: neither text nor image")
        negatives = tuple(self.images.content(*self._candidate(name)) for name in self._negatives(row))
        pairs = tuple(
            Pair(
                task=f"task{row.values.get('task_id')}",
                queries=tuple(
                    Content(query_text(prompt, text, tidy=self.config.tidy_texts))
                    for prompt in self._prompts(row, dataset, candidate)
                ),
                target=self.images.content(*candidate),
                negatives=negatives,
            )
            for candidate in positives
        )
        return Sample(qid, f"mbeir/{DATA_SETS[dataset]}", self.images.images(image), pairs)

    def _files(self, names: Sequence[str]) -> list[Path]:
        return [existing(self.folder / name, hint=_DOWNLOAD) for name in names]

    def _positives(self, row: Row) -> list[str]:
        return _ids(row, "pos_cand_list")[: self.config.max_positives]

    def _negatives(self, row: Row) -> list[str]:
        return _ids(row, "neg_cand_list")[: self.config.num_negatives]

    def _prompts(self, row: Row, dataset: int, candidate: TextAndImage) -> list[str]:
        text, image = candidate
        target = ",".join(name for name, part in (("image", image), ("text", text)) if part)
        prompts = self._instructions.prompts(dataset, row.text("query_modality"), target)
        return [prompt for prompt in prompts if prompt.strip()]

    @cached_property
    def _instructions(self) -> Instructions:
        return Instructions(*self._files([self.config.instructions]))

    @cached_property
    def _pool(self) -> CandidatePool:
        return CandidatePool(self._files(self.config.candidates), self.images, self._cleaned)

    def _candidate(self, name: str) -> TextAndImage:
        return self._pool.read(self._pool.index_of(name))

    def _cleaned(self, text: str) -> str:
        return clean(text) if self.config.tidy_texts else text


def _ids(row: Row, column: str) -> list[str]:
    """Return ids of candidates; some files have null for none."""
    names = row.values.get(column) or []
    if not isinstance(names, list):
        raise DataError(f"{column} is a {type(names).__name__}, not a list")
    return [text_of(name, column) for name in names]
