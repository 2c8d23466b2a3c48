"""M-BEIR: sixteen test sets of eight kinds of search, among a data set's own candidates or all there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError, did_you_mean
from muco.core.suite import Suite, Task
from muco.io.image_files import ImageFiles, TextAndImage
from muco.io.tables import whole_rows
from muco.plugins.datasets.mbeir.files import DATA_SET_IDS, KINDS, Pool, clean, content_of, lines_of

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
"""Data set and kind by name."""
_TEN = ("fashion200k", "fashioniq")
"""Scored by the best ten, others by the best five."""


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in TEST_SETS:
            raise ValueError(f"M-BEIR has no test set {name!r}.{did_you_mean(name, list(TEST_SETS))}")
    return tuple(dict.fromkeys(names))


class MBEIR(Suite):
    """Read M-BEIR's files as they are published.

    References:
        Wei et al. 2023, arXiv:2311.17136: UniIR and M-BEIR; hit-style recall, cleaned texts.
    """

    class Config(ComponentConfig):
        data: Annotated[str, Field(min_length=1)]
        """The folder with `query`, `cand_pool`, `qrels` and `instructions`."""
        images: str | None = None
        """The folder or archive that image paths start from; by default `data` itself."""
        pool: Literal["local", "global", "both"] = "local"
        """local: a data set's own candidates. global: those of all, 5.6 million. both: each in turn; names of
        tasks and averages of the global pool then start with `global_`."""
        datasets: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_known)] | None = None
        """The test sets to score, `cirr_task7`, say; by default all that are in `data`."""
        prompt: Annotated[int, Field(ge=1, le=4)] = 1
        """Which of the four instructions precedes every query."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"image_targets"})

    def __init__(self, config: Config) -> None:
        self.folder = Path(config.data).expanduser()
        self.names = config.datasets
        self.pools = ("local", "global") if config.pool == "both" else (config.pool,)
        self.prompt = config.prompt
        self.images = ImageFiles([Path(config.images or config.data).expanduser()])

    def members(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for pool in self.pools:
            for name in TEST_SETS:
                for average in ("mean", *self._averages(name, pool)):
                    where = f"{self._prefix(pool)}{average}"
                    found[where] = found.get(where, 0) + 1
        return found

    def verify_data(self) -> None:
        names = self._names_there()
        files = [self._queries(name) for name in names] + [self._qrels(name) for name in names]
        if "local" in self.pools:
            files += [self._local_file(name) for name in names]
        if "global" in self.pools:
            files.append(self._global_file)
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise DataError(f"{', '.join(missing[:6])}: no such file. {self._how}")
        for name in names:
            self._instruction(*TEST_SETS[name])
            for _, row in islice(whole_rows(self._queries(name)), 1):
                self._check_images(name, [row.get("query_img_path") or ""])

    def tasks(self) -> Iterable[Task]:
        names = self._names_there()
        for pool in self.pools:
            everything = Pool(self._global_file, self.images) if pool == "global" else None
            for name in names:
                yield self._task(name, pool, everything or Pool(self._local_file(name), self.images))

    @property
    def _how(self) -> str:
        return (
            f"`hf download --repo-type dataset TIGER-Lab/M-BEIR --local-dir {self.folder}` gets all that the "
            "suite reads, 170 GB of images among them."
        )

    def _names_there(self) -> Sequence[str]:
        names = self.names or [name for name in TEST_SETS if self._queries(name).is_file()]
        if not names:
            raise DataError(f"{self.folder}: no query/test/mbeir_*_test.jsonl. {self._how}")
        return names

    def _check_images(self, name: str, paths: Iterable[str]) -> None:
        self.images.check(paths, told=f"{name} needs them; they are in mbeir_images.tar.gz.")

    def _task(self, name: str, pool: str, candidates: Pool) -> Task:
        data_set, kind = TEST_SETS[name]
        rows, relevant = self._read_queries(name, candidates)
        self._check_images(name, (path for _, path in rows))
        best = 10 if data_set in _TEN else 5
        prefix = self._prefix(pool)
        return Task(
            name=f"{prefix}{name}",
            meta_task=KINDS[kind].name,
            queries=self.images.contents(rows),
            pool=candidates.contents,
            candidates=None,
            relevant=relevant,
            metric=f"hit@{best}",
            more_metrics=tuple(f"hit@{k}" for k in ((10, 20, 50) if best == 10 else (1, 5, 10)) if k != best),
            groups=tuple(f"{prefix}{each}" for each in self._averages(name, pool) if prefix or "->" in each)
            + ((f"{prefix}mean",) if prefix else ()),
            in_mean=not prefix,
        )

    def _averages(self, name: str, pool: str) -> tuple[str, str]:
        kind = KINDS[TEST_SETS[name][1]]
        return f"meta_{kind.name}", kind.group

    def _prefix(self, pool: str) -> str:
        return "global_" if pool == "global" and len(self.pools) > 1 else ""

    def _queries(self, name: str) -> Path:
        return self.folder / "query" / "test" / f"mbeir_{name}_test.jsonl"

    def _qrels(self, name: str) -> Path:
        return self.folder / "qrels" / "test" / f"mbeir_{name}_test_qrels.txt"

    @property
    def _global_file(self) -> Path:
        return self.folder / "cand_pool" / "global" / "mbeir_union_test_cand_pool.jsonl"

    def _local_file(self, name: str) -> Path:
        folder = self.folder / "cand_pool" / "local"
        of_test = folder / f"mbeir_{name}_test_cand_pool.jsonl"  # MSCOCO has one for each split
        return of_test if of_test.is_file() else folder / f"mbeir_{name}_cand_pool.jsonl"

    def _read_queries(self, name: str, pool: Pool) -> tuple[list[TextAndImage], list[list[int]]]:
        data_set, task = TEST_SETS[name]
        instruction = self._instruction(data_set, task)
        judged = self._judged(name)
        rows: list[TextAndImage] = []
        relevant: list[list[int]] = []
        for where, row in whole_rows(self._queries(name)):
            qid = str(row.get("qid"))
            content = content_of(row, "query_txt", "query_img_path", "query_modality", where)
            if qid not in judged:
                raise DataError(f"{where}: query {qid} is not in the qrels; queries and qrels disagree")
            # Some list positives of other data sets; the benchmark counts the query's own.
            own = [each for each in judged[qid] if each.split(":")[0] == qid.split(":")[0]]
            if not own:
                raise DataError(f"{where}: query {qid} has no positive of its own data set in the qrels")
            rows.append((clean(f"{instruction} {clean(content[0])}".strip()), content[1]))
            relevant.append([pool.find(each, f"{where}: query {qid}") for each in own])
        if not rows:
            raise DataError(f"{self._queries(name)}: no query")
        return rows, relevant

    def _judged(self, name: str) -> dict[str, list[str]]:
        """Return the relevant candidates of each query."""
        path = self._qrels(name)
        judged: dict[str, list[str]] = {}
        for number, line in enumerate(lines_of(path), start=1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 5 or not fields[3].lstrip("-").isdecimal():
                raise DataError(f"{path}, line {number}: must be `qid 0 did relevance task_id`")
            if int(fields[3]) > 0:
                judged.setdefault(fields[0], []).append(fields[2])
        return judged

    @cached_property
    def _instructions(self) -> dict[tuple[int, str, str], list[str]]:
        path = self.folder / "instructions" / "query_instructions.tsv"
        head, *lines = lines_of(path) or [""]
        names = head.split("\t")
        found: dict[tuple[int, str, str], list[str]] = {}
        for number, line in enumerate(filter(None, lines), start=2):
            row = dict(zip(names, line.split("\t"), strict=False))
            try:
                key = (int(row["dataset_id"]), row["query_modality"], row["cand_modality"])
                found[key] = [row[f"prompt_{place}"] for place in range(1, 5)]
            except (KeyError, ValueError):
                raise DataError(
                    f"{path}, line {number}: must have the columns query_modality, cand_modality, "
                    "dataset_name, dataset_id, prompt_1 to prompt_4"
                ) from None
        return found

    def _instruction(self, data_set: str, task: int) -> str:
        kind = KINDS[task]
        try:
            return self._instructions[DATA_SET_IDS[data_set], kind.query, kind.target][self.prompt - 1]
        except KeyError:
            raise DataError(
                f"{self.folder / 'instructions' / 'query_instructions.tsv'}: no instruction for {data_set}, "
                f"{kind.query} to {kind.target}"
            ) from None
