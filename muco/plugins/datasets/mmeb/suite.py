"""MMEB: 36 image data sets; each query is searched among its own candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError
from muco.core.suite import Suite, Task
from muco.io.image_files import ImageFiles, PublicDecoding, TextAndImage
from muco.io.table_text import parsed_list, text_list, text_of
from muco.io.tables import kind_of, strict_rows
from muco.plugins.datasets.mmeb.texts import Shape, query_text, strip_image_token, target_text
from muco.plugins.datasets.names import Names, known


@dataclass(frozen=True)
class DataSet:
    """A data set of the benchmark."""

    meta_task: str
    in_domain: bool
    """Whether MMEB's training data holds its training split."""
    shape: Shape
    """How its texts are joined in the second layout."""


def _sets(meta_task: str, in_domain: bool, shape: Shape, *names: str) -> dict[str, DataSet]:
    return {name: DataSet(meta_task, in_domain, shape) for name in names}


DATA_SETS: dict[str, DataSet] = {
    **_sets("classification", True, "cls", "ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397"),
    **_sets(
        "classification", False, "cls", "Place365", "ImageNet-A", "ImageNet-R", "ObjectNet", "Country211"
    ),
    **_sets("vqa", True, "qa", "OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"),
    **_sets("vqa", False, "qa", "ScienceQA", "VizWiz", "GQA", "TextVQA"),
    **_sets("retrieval", True, "t2i", "VisDial", "VisualNews_t2i", "MSCOCO_t2i", "WebQA"),
    **_sets("retrieval", True, "i2t", "VisualNews_i2t", "MSCOCO_i2t"),
    **_sets("retrieval", True, "i2i_vg", "CIRR", "NIGHTS"),
    **_sets("retrieval", False, "i2i_vg", "FashionIQ", "OVEN"),
    **_sets("retrieval", False, "t2i", "Wiki-SS-NQ", "EDIS"),
    **_sets("grounding", True, "i2i_vg", "MSCOCO"),
    **_sets("grounding", False, "i2i_vg", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"),
}
"""The 36, of which 20 are in domain."""


class MMEB(Suite):
    """Read MMEB's test files in either public layout; the first candidate of a query is the right one.

    References:
        Jiang et al. 2024, arXiv:2410.05160: MMEB; precision@1, the mean of data sets.
    """

    class Config(ComponentConfig):
        data: Annotated[str, Field(min_length=1)]
        """The folder that holds a folder of Parquet or JSONL files for each data set."""
        images: str | None = None
        """The folder or archive of the images; by default `data`, its folders `eval_images`, `images` and
        `image-tasks`, and its archives."""
        image_decoding: PublicDecoding = "plain"
        datasets: Annotated[Names, known("data set", DATA_SETS, twice=True)] | None = None
        """The data sets to score; by default all that are in `data`. Fewer than 36 have no average."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"image_targets"})

    def __init__(self, config: Config) -> None:
        self.folder = Path(expanduser(config.data))
        self.names = config.datasets
        paths = [Path(expanduser(config.images))] if config.images else []
        inside = ("", "eval_images", "images", "image-tasks", "images/image-tasks")
        self.images = ImageFiles(
            [*paths, *(self.folder / name for name in inside)],
            aliases={"images/": "image-tasks/"},
            decoding=config.image_decoding,
        )

    def members(self) -> Mapping[str, int]:
        averages = (("mean", f"meta_{each.meta_task}", _domain(each)) for each in DATA_SETS.values())
        return Counter(chain.from_iterable(averages))

    def verify_data(self) -> None:
        for name, files in self._files_of_sets().items():
            firsts = [row for path in files for row in islice(_rows(name, path), 1)]
            self._check_images(name, [content for query, targets in firsts for content in (query, *targets)])

    def tasks(self) -> Iterable[Task]:
        for name, files in self._files_of_sets().items():
            yield self._task(name, files)

    def _files_of_sets(self) -> dict[str, list[Path]]:
        files = {name: _files(self.folder / name) for name in self.names or DATA_SETS}
        missing = [name for name, paths in files.items() if not paths]
        if len(missing) == len(files) or (missing and self.names):
            raise DataError(
                f"{self.folder}: no files of {', '.join(missing[:6])}{' and others' if missing[6:] else ''}. "
                "A data set is a folder of its name with test files in Parquet or JSONL. `hf download "
                f"--repo-type dataset TIGER-Lab/MMEB-eval --local-dir {self.folder}` gets all 36, with "
                "images.zip, which need not be unpacked."
            )
        return {name: paths for name, paths in files.items() if paths}

    def _task(self, name: str, files: list[Path]) -> Task:
        queries: list[TextAndImage] = []
        indices: dict[TextAndImage, int] = {}
        candidates: list[list[int]] = []
        num_empty = 0
        for query, targets in chain.from_iterable(_rows(name, path) for path in files):
            queries.append(query)
            num_empty += sum(not any(target) for target in targets)
            row = [indices.setdefault(target, len(indices)) for target in targets]
            candidates.append(list(dict.fromkeys(row)))  # a duplicate of the right one is right too
        if not queries:
            raise DataError(f"{self.folder / name}: the files hold no query")
        pool = list(indices)
        self._check_images(name, (*queries, *pool))
        return Task(
            name=name,
            meta_task=DATA_SETS[name].meta_task,
            queries=self.images.contents(queries),
            pool=self.images.contents(pool),
            candidates=candidates,
            relevant=[row[:1] for row in candidates],
            more_metrics=("hit@5", "hit@10", "mrr"),
            groups=(_domain(DATA_SETS[name]),),
            warnings=(f"{name}: {num_empty:,} candidates have neither text nor image",) if num_empty else (),
        )

    def _check_images(self, name: str, rows: Iterable[TextAndImage]) -> None:
        hint = (
            f"{name} needs them: put images.zip of the same download, or its contents, beside the data, or "
            "set `images`."
        )
        self.images.check((path for _, path in rows), hint=hint)


def _domain(data_set: DataSet) -> str:
    return "ind" if data_set.in_domain else "ood"


def _files(folder: Path) -> list[Path]:
    """Return the files of the test split, or all files if no name begins with `test`."""
    files = sorted(path for path in folder.glob("*") if kind_of(path) in (".parquet", ".jsonl"))
    files = [path for path in files if not path.name.startswith(".")]
    return [path for path in files if path.name.startswith("test")] or files


def _rows(name: str, path: Path) -> Iterator[tuple[TextAndImage, list[TextAndImage]]]:
    """Yield the queries of a data set's file, each with its candidates, the right one first."""
    for location, row in strict_rows(path):
        try:
            query, targets = _read_row(DATA_SETS[name].shape, row)
            if not any(query):
                raise DataError("the query has neither text nor image")
        except DataError as error:
            raise DataError(f"{location}: {error}") from None
        yield query, targets


def _read_row(shape: Shape, row: Mapping[str, Any]) -> tuple[TextAndImage, list[TextAndImage]]:
    """Return a query and its candidates in either layout; only the second has columns of instructions."""
    has_instructions = "qry_inst" in row
    required = ["qry_text", "qry_img_path", "tgt_text", "tgt_img_path", *(["tgt_inst"] * has_instructions)]
    if missing := [name for name in required if name not in row]:
        raise DataError(f"no column {', '.join(missing)}. Columns: {', '.join(row)}")
    texts, paths = _list(row, "tgt_text"), _list(row, "tgt_img_path")
    if not texts and not paths:
        raise DataError("the query has no candidates")
    if len(texts) != len(paths):
        raise DataError(f"{len(texts)} texts and {len(paths)} image paths of candidates; they must agree")
    query, image = text_of(row["qry_text"], "qry_text"), text_of(row["qry_img_path"], "qry_img_path")
    instruction = text_of(row.get("qry_inst"), "qry_inst")
    if not has_instructions:
        targets = [(strip_image_token(text), path) for text, path in zip(texts, paths, strict=True)]
        return (strip_image_token(query, has_image=bool(image)), image), targets
    instructions = text_list(row["tgt_inst"], "tgt_inst") or [""]  # one for all, or one each
    targets = [
        (target_text(shape, instructions[min(index, len(instructions) - 1)], text), path)
        for index, (text, path) in enumerate(zip(texts, paths, strict=True))
    ]
    return (query_text(shape, instruction, query, has_image=bool(image)), image), targets


def _list(row: Mapping[str, Any], column: str) -> list[str]:
    value = row[column]
    if isinstance(value, str) and value and parsed_list(value) is None:
        raise DataError(f"{column} must be a list of texts, not {value[:40]!r}")
    return text_list(value, column)
