"""Retrieval tasks of mteb, scored by muco."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError, MucoError
from muco.core.sample import Content
from muco.core.suite import Suite, Task
from muco.io.lazy import LazyContents
from muco.io.pil_images import encoded_image


class Mteb(Suite):
    """Retrieval tasks of mteb, texts and images. Other kinds of task run by `muco.integrations.mteb`.

    mteb downloads the data. Relevance is binary: a document with a positive grade is right.

    References:
        Muennighoff et al. 2023, arXiv:2210.07316: MTEB. Xiao et al. 2025, arXiv:2504.10471: MIEB.
    """

    class Config(ComponentConfig):
        tasks: Annotated[tuple[str, ...], Field(min_length=1)]
        """Names of tasks, as `mteb available-tasks` lists them."""
        split: str = "test"
        """The split of each task that is scored."""
        instructions: Mapping[str, str] = {}
        """Put before the queries of a task, by its name; mteb's own for the others."""
        instruction_template: str = "{instruction} "
        """`{instruction}` stands for the instruction."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"image_targets"})

    def __init__(self, config: Config) -> None:
        self.config = config

    def verify_data(self) -> None:
        """Check that mteb is installed, and that the tasks are retrieval tasks."""
        for name in self.config.tasks:
            _task(name)

    def tasks(self) -> Iterable[Task]:
        for name in self.config.tasks:
            task = _task(name)
            try:
                task.load_data()
            except Exception as error:
                raise DataError(f"mteb cannot load {name}: {error}") from error
            task.convert_v1_dataset_format_to_v2(num_proc=1)
            for subset, splits in task.dataset.items():
                if self.config.split not in splits:
                    raise DataError(f"{name} has no split {self.config.split!r}; it has {', '.join(splits)}")
                title = name if len(task.dataset) == 1 else f"{name}/{subset}"
                yield self._task(title, task, splits[self.config.split])

    def _task(self, title: str, task: Any, split: Mapping[str, Any]) -> Task:
        metadata = task.metadata
        instruction = self.config.instructions.get(metadata.name, _query_prompt(metadata))
        prefix = self.config.instruction_template.format(instruction=instruction) if instruction else ""
        row_of = {name: row for row, name in enumerate(split["corpus"]["id"])}
        ids = list(split["queries"]["id"])
        query_rows, relevant = [], []
        graded = False
        for row, name in enumerate(ids):
            grades = split["relevant_docs"].get(name, {})
            graded |= any(grade > 1 for grade in grades.values())
            right = [row_of[each] for each, grade in grades.items() if grade > 0 and each in row_of]
            if right:
                query_rows.append(row)
                relevant.append(right)
        if not query_rows:
            raise DataError(f"{title}: no query has a right answer in the corpus")
        warnings: list[str] = []
        if left_out := len(ids) - len(query_rows):
            warnings.append(f"{title}: {left_out:,} queries without a right answer are left out")
        if graded:
            warnings.append(f"{title}: grades of relevance are read as right or wrong, unlike in mteb")
        if (metric := _metric(metadata.main_score)).partition("@")[2] not in metadata.main_score.split("_"):
            warnings.append(f"{title}: scored by {metric}, not by mteb's {metadata.main_score}")
        return _checked_task(
            name=title,
            meta_task=str(metadata.type),
            queries=_contents(split["queries"], query_rows, _modalities(metadata, "query"), prefix),
            pool=_contents(split["corpus"], range(len(row_of)), _modalities(metadata, "document")),
            candidates=_candidates(title, split.get("top_ranked"), [ids[row] for row in query_rows], row_of),
            relevant=relevant,
            metric=metric,
            more_metrics=("ndcg@5", "ndcg@10", "recall@1", "recall@10", "mrr"),
            notes=(f"before each query: {prefix!r}",),
            warnings=tuple(warnings),
        )


def _task(name: str) -> Any:
    try:
        import mteb
        from mteb.abstasks.retrieval import AbsTaskRetrieval
    except ImportError:
        raise MucoError("suite mteb needs mteb: pip install 'muco[mteb]'") from None
    try:
        task = mteb.get_task(name)
    except (KeyError, ValueError) as error:
        raise DataError(f"mteb has no task {name!r}: {error}") from None
    if not isinstance(task, AbsTaskRetrieval):
        raise DataError(
            f"{name} is no retrieval task ({task.metadata.type}). Evaluate it with muco.integrations.mteb: "
            "mteb.evaluate(MucoEncoder(run), tasks)"
        )
    if task.ignore_identical_ids or task.skip_first_result:
        raise DataError(
            f"{name} leaves candidates out of the ranking, which muco's search does not do. Evaluate it with "
            "muco.integrations.mteb"
        )
    return task


def _modalities(metadata: Any, side: str) -> list[str]:
    from mteb.types import PromptType

    return metadata.get_modalities(PromptType(side))


def _metric(main_score: str) -> str:
    """Return muco's name of mteb's main score; ndcg@10 if muco does not have it."""
    name, _, cut_off = main_score.partition("_at_")
    name = {"hit_rate": "hit", "cv_recall": "hit"}.get(name, name)
    is_known = name in ("ndcg", "recall", "precision", "hit") and cut_off.isdecimal()
    return f"{name}@{cut_off}" if is_known else "ndcg@10"


def _query_prompt(metadata: Any) -> str:
    prompt = metadata.prompt
    return (prompt.get("query") or "") if isinstance(prompt, dict) else prompt or ""


def _contents(rows: Any, indices: Sequence[int], modalities: Sequence[str], prefix: str = "") -> LazyContents:
    """Return the contents of a data set's rows, read on use; columns of other modalities are not read."""
    has_image = "image" in modalities and "image" in rows.column_names
    has_text = "text" in modalities and "text" in rows.column_names

    def content(index: int) -> Content:
        row = rows[indices[index]]
        text = (row.get("text") or "") if has_text else ""
        text = " ".join(filter(None, (row.get("title"), text, row.get("instruction"))))
        images = (encoded_image(row["image"]),) if has_image and row.get("image") is not None else ()
        return Content(f"{prefix}{text.strip()}" or " " * (not images), images)

    return LazyContents(content, range(len(indices)))


def _candidates(
    title: str,
    listed: Mapping[str, Sequence[str]] | None,
    queries: Sequence[str],
    row_of: Mapping[str, int],
) -> list[list[int]] | None:
    """Return the candidates of each query of a reranking task; None where the whole pool is searched."""
    if not listed:
        return None
    try:
        return [[row_of[document] for document in listed[query]] for query in queries]
    except KeyError as error:
        raise DataError(f"{title}: {error} has no candidates, or is one and not in the corpus") from None


def _checked_task(**fields: Any) -> Task:
    try:
        return Task(**fields)
    except ValueError as error:  # such as a right answer that is no candidate, which mteb counts as missed
        raise DataError(f"{error}. Evaluate it with muco.integrations.mteb") from None
