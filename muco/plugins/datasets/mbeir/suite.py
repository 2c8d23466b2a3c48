"""M-BEIR: sixteen test sets of eight kinds of search, among the candidates of one data set or of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from os.path import expanduser
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError
from muco.core.ids import stable_id
from muco.core.suite import Suite, Task
from muco.io.image_files import ImageFiles, PublicDecoding, TextAndImage
from muco.io.table_text import text_of
from muco.io.tables import strict_rows
from muco.plugins.datasets.mbeir.files import (
    DATA_SETS,
    INSTRUCTIONS,
    KINDS,
    CandidatePool,
    Instructions,
    clean,
    query_text,
    read_lines,
    text_and_image,
)
from muco.plugins.datasets.names import Names, known

TEST_SETS: dict[str, tuple[str, int]] = {
    f"{name}_task{task}": (name, task)
    for task, names in {
        0: ("visualnews", "mscoco", "fashion200k"),
        1: ("webqa",),
        2: ("edis", "webqa"),
        3: ("visualnews", "mscoco", "fashion200k"),
        4: ("nights",),
        6: ("oven", "infoseek"),
        7: ("fashioniq", "cirr"),
        8: ("oven", "infoseek"),
    }.items()
    for name in names
}
"""Data set and task id by name."""
_SCORED_AT_TEN = ("fashion200k", "fashioniq")
"""Their score is hit@10; that of the others is hit@5."""


class MBEIR(Suite):
    """Read M-BEIR's files as they are published.

    References:
        Wei et al. 2023, arXiv:2311.17136: UniIR and M-BEIR; recall as hit@k, cleaned texts.
    """

    class Config(ComponentConfig):
        data: Annotated[str, Field(min_length=1)]
        """The folder with `query`, `cand_pool`, `qrels` and `instructions`."""
        images: str | None = None
        """The folder or archive that image paths start from; by default `data` itself."""
        image_decoding: PublicDecoding = "plain"
        pool: Literal["local", "global", "both"] = "local"
        """local: the candidates of a data set. global: those of all, 5.6 million. both: one after the other;
        names of tasks and averages of the global pool then start with `global_`."""
        datasets: Annotated[Names, known("test set", TEST_SETS, twice=True)] | None = None
        """The test sets to score, such as `cirr_task7`; by default all that are in `data`."""
        prompt: Annotated[int, Field(ge=1, le=4)] | Literal["draw"] = 1
        """Which of the four instructions is put before every query. draw: one is drawn for each query, as
        UniIR does; equal seeds draw equal ones."""
        prompt_seed: int = 0
        """The seed of `prompt: draw`."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"image_targets"})

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = Path(expanduser(config.data))
        self.images = ImageFiles.below(config.images, self.folder, decoding=config.image_decoding)
        self.pools = ("local", "global") if config.pool == "both" else (config.pool,)

    def members(self) -> Mapping[str, int]:
        names = [name for each in TEST_SETS for name in ("mean", *_averages(each))]
        return Counter(f"{self._prefix(pool)}{name}" for pool in self.pools for name in names)

    def verify_data(self) -> None:
        names = self._present()
        files = [path for name in names for path in (self._queries_file(name), self._qrels_file(name))]
        files += [self._pool_file(name, pool) for pool in self.pools for name in names]
        missing = [str(path) for path in dict.fromkeys(files) if not path.is_file()]
        if missing:
            raise DataError(f"{', '.join(missing[:6])}: no such file. {self._download}")
        for name in names:
            self._prompts(name)
            for _, row in islice(strict_rows(self._queries_file(name)), 1):
                self._check_images(name, [text_of(row.get("query_img_path"), "query_img_path")])

    def tasks(self) -> Iterable[Task]:
        names = self._present()
        for pool in self.pools:
            shared = self._open_pool(names[0], pool) if pool == "global" else None
            for name in names:
                yield self._task(name, pool, shared or self._open_pool(name, pool))

    @property
    def _download(self) -> str:
        return (
            f"`hf download --repo-type dataset TIGER-Lab/M-BEIR --local-dir {self.folder}` gets all that the "
            "suite reads, 170 GB of images among them."
        )

    def _present(self) -> Sequence[str]:
        names = self.config.datasets or [name for name in TEST_SETS if self._queries_file(name).is_file()]
        if not names:
            raise DataError(f"{self.folder}: no query/test/mbeir_*_test.jsonl. {self._download}")
        return names

    def _task(self, name: str, pool: str, candidates: CandidatePool) -> Task:
        data_set, task_id = TEST_SETS[name]
        queries, relevant = self._read_queries(name, candidates)
        self._check_images(name, (path for _, path in queries))
        best, more = (10, (20, 50)) if data_set in _SCORED_AT_TEN else (5, (1, 10))
        prefix, empty = self._prefix(pool), candidates.num_empty
        # `meta_task` and `in_mean` already give the averages without a prefix.
        groups = (*_averages(name), "mean") if prefix else _averages(name)[1:]
        return Task(
            name=f"{prefix}{name}",
            meta_task=KINDS[task_id].name,
            queries=self.images.contents(queries),
            pool=candidates.contents,
            candidates=None,
            relevant=relevant,
            metric=f"hit@{best}",
            more_metrics=tuple(f"hit@{k}" for k in more),
            groups=tuple(f"{prefix}{group}" for group in groups),
            in_mean=not prefix,
            warnings=(f"{name}: {empty:,} candidates have neither text nor image",) if empty else (),
        )

    def _prefix(self, pool: str) -> str:
        return "global_" if pool == "global" and len(self.pools) > 1 else ""

    def _queries_file(self, name: str) -> Path:
        return self.folder / "query" / "test" / f"mbeir_{name}_test.jsonl"

    def _qrels_file(self, name: str) -> Path:
        return self.folder / "qrels" / "test" / f"mbeir_{name}_test_qrels.txt"

    def _pool_file(self, name: str, pool: str) -> Path:
        if pool == "global":
            return self.folder / "cand_pool" / "global" / "mbeir_union_test_cand_pool.jsonl"
        folder = self.folder / "cand_pool" / "local"
        of_test = folder / f"mbeir_{name}_test_cand_pool.jsonl"  # MSCOCO has one for each split
        return of_test if of_test.is_file() else folder / f"mbeir_{name}_cand_pool.jsonl"

    def _open_pool(self, name: str, pool: str) -> CandidatePool:
        candidates = CandidatePool([self._pool_file(name, pool)], self.images, clean)
        candidates.check()
        return candidates

    def _check_images(self, name: str, paths: Iterable[str]) -> None:
        self.images.check(paths, hint=f"{name} needs them; they are in mbeir_images.tar.gz.")

    def _read_queries(self, name: str, pool: CandidatePool) -> tuple[list[TextAndImage], list[list[int]]]:
        prompts, positives = self._prompts(name), self._positives(name)
        queries: list[TextAndImage] = []
        relevant: list[list[int]] = []
        for location, row in strict_rows(self._queries_file(name)):
            qid = str(row.get("qid"))
            try:
                text, image = text_and_image(row, "query_txt", "query_img_path", "query_modality")
                if qid not in positives:
                    raise DataError(f"query {qid} is not in the qrels; queries and qrels disagree")
                # Some list positives of other data sets; the benchmark counts the query's own.
                own = [did for did in positives[qid] if did.split(":")[0] == qid.split(":")[0]]
                if not own:
                    raise DataError(f"query {qid} has no positive of its own data set in the qrels")
                queries.append((query_text(self._prompt_of(prompts, qid), text), image))
                relevant.append([pool.index_of(did) for did in own])
            except DataError as error:
                raise DataError(f"{location}: {error}") from None
        if not queries:
            raise DataError(f"{self._queries_file(name)}: no query")
        return queries, relevant

    def _positives(self, name: str) -> dict[str, list[str]]:
        """Return the relevant candidates of each query."""
        path = self._qrels_file(name)
        positives: dict[str, list[str]] = {}
        for number, line in enumerate(read_lines(path), start=1):
            if not (fields := line.split()):
                continue
            if len(fields) != 5 or not fields[3].lstrip("-").isdecimal():
                raise DataError(f"{path}, line {number}: must be `qid 0 did relevance task_id`")
            if int(fields[3]) > 0:
                positives.setdefault(fields[0], []).append(fields[2])
        return positives

    @cached_property
    def _instructions(self) -> Instructions:
        return Instructions(self.folder / INSTRUCTIONS)

    def _prompt_of(self, prompts: Sequence[str], qid: str) -> str:
        prompt = self.config.prompt
        if prompt == "draw":
            return Random(stable_id(str(self.config.prompt_seed), qid)).choice(prompts)
        return prompts[prompt - 1]

    def _prompts(self, name: str) -> list[str]:
        """Return the four instructions of a test set."""
        data_set, task_id = TEST_SETS[name]
        kind = KINDS[task_id]
        return self._instructions.prompts(DATA_SETS.index(data_set), kind.query, kind.target)


def _averages(name: str) -> tuple[str, str]:
    """Return the averages over a test set's kind of search and over its group of kinds."""
    kind = KINDS[TEST_SETS[name][1]]
    return f"meta_{kind.name}", kind.group
