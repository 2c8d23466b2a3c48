"""Samples: one or more pairs of query and target, usually about one image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from muco.core.ids import stable_id
from muco.core.video import Visual


@dataclass(frozen=True)
class Content:
    """A text, images (or videos) or both; the images are rendered before the text."""

    text: str = ""
    images: tuple[Visual, ...] = ()
    caption: str = ""
    """A description of the images, if known; it does not affect `content_id`."""

    @property
    def content_id(self) -> int:
        """A stable hash of text and images: equal for equal contents."""
        return stable_id(self.text, *(str(image.content_id) for image in self.images))

    def __bool__(self) -> bool:
        return bool(self.text or self.images)


@dataclass(frozen=True)
class Pair:
    """A query and its target; raises ValueError if there is no query or the target is empty."""

    task: str
    """The kind of question, such as `local_vqa_1`; for statistics only."""
    queries: tuple[Content, ...]
    """Paraphrases of one query, of which a packer draws one. Their images are added to the sample's."""
    target: Content
    negatives: tuple[Content, ...] = ()
    """Hard negatives: targets that are wrong for this query."""

    def __post_init__(self) -> None:
        if not self.queries:
            raise ValueError(f"the pair of task {self.task!r} has no query")
        if not self.target:
            raise ValueError(f"the pair of task {self.task!r} has an empty target")


@dataclass(frozen=True)
class Sample:
    """One record of a data set; raises ValueError if there is no pair."""

    sample_id: str
    """Unique within its data set."""
    dataset: str
    images: tuple[Visual, ...]
    """Put before every query of the sample: the shared prefix."""
    pairs: tuple[Pair, ...]
    caption: str = ""
    """A description of `images`, if known."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError(f"sample {self.sample_id!r} has no pair")

    def contents(self) -> Iterator[Content]:
        """Yield the queries, targets and hard negatives."""
        for pair in self.pairs:
            yield from (*pair.queries, pair.target, *pair.negatives)

    def visuals(self) -> Iterator[Visual]:
        """Yield all images and videos, including those of queries, targets and hard negatives."""
        yield from self.images
        yield from (visual for content in self.contents() for visual in content.images)

    @property
    def group_id(self) -> int:
        """A stable hash of the images, or of the record if it has none.

        It is equal for records with the same images, so that their turns are never each other's negatives.
        """
        if self.images:
            return stable_id("image", *(str(image.content_id) for image in self.images))
        return stable_id("record", self.dataset, self.sample_id)
