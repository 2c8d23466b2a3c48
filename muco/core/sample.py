"""What a shard holds: samples, each one or more query-target pairs, most often about one image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from muco.core.ids import stable_id
from muco.core.video import Visual


@dataclass(frozen=True)
class Content:
    """Text, images or both; where both are rendered, the images come first.

    Videos stand among the images, here and in a `Sample`.
    """

    text: str = ""
    images: tuple[Visual, ...] = ()
    caption: str = ""
    """What the images show, in words, where it is known; it is no part of the content's identity."""

    @property
    def content_id(self) -> int:
        """The stable hash of text and images: equal content, equal id."""
        return stable_id(self.text, *(str(image.content_id) for image in self.images))

    def __bool__(self) -> bool:
        return bool(self.text or self.images)


@dataclass(frozen=True)
class Pair:
    """A query and its target.

    Raises:
        ValueError: there is no query, or the target is empty.
    """

    task: str
    """The kind of question, `local_vqa_1`; it groups statistics and has no effect on the loss."""
    queries: tuple[Content, ...]
    """Paraphrases of one query: a packer draws one. Their images come on top of the sample's."""
    target: Content
    negatives: tuple[Content, ...] = ()
    """Hard negatives: wrong targets for this query in particular."""

    def __post_init__(self) -> None:
        if not self.queries:
            raise ValueError(f"the pair of task {self.task!r} has no query")
        if not self.target:
            raise ValueError(f"the pair of task {self.task!r} has an empty target")


@dataclass(frozen=True)
class Sample:
    """One record of a shard.

    Raises:
        ValueError: there is no pair.
    """

    sample_id: str
    """Unique within its data set."""
    dataset: str
    images: tuple[Visual, ...]
    """Seen by every query of the sample, before its text: the shared prefix."""
    pairs: tuple[Pair, ...]
    caption: str = ""
    """What `images` show, in words, where it is known."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError(f"sample {self.sample_id!r} has no pair")

    def contents(self) -> Iterator[Content]:
        """Yield the queries, targets and hard negatives."""
        for pair in self.pairs:
            yield from (*pair.queries, pair.target, *pair.negatives)

    def visuals(self) -> Iterator[Visual]:
        """Yield the images and videos, those of queries, targets and hard negatives too."""
        yield from self.images
        yield from (visual for content in self.contents() for visual in content.images)

    @property
    def group_id(self) -> int:
        """The stable hash of the images, or of the record where there is none.

        Records of one image share it, so that their turns are never each other's negatives.
        """
        if self.images:
            return stable_id("image", *(str(image.content_id) for image in self.images))
        return stable_id("record", self.dataset, self.sample_id)
