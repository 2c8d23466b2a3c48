"""What lies in shards: counts, tasks, lengths of texts and sizes of images, and some samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from muco.core.errors import DataError
from muco.core.sample import Sample
from muco.core.video import Video, Visual
from muco.data.shards.check import images_of
from muco.data.shards.reader import ShardReader

ShowProgress = Callable[[Iterable[int], int, str], Iterable[int]]


@dataclass
class Summary:
    """Figures of the samples that were looked at."""

    num_samples: int
    """In the shards."""
    num_seen: int = 0
    """Looked at, spread evenly."""
    num_unreadable: int = 0
    num_bytes: int = 0
    """Of the shards."""
    pairs_a_sample: list[int] = field(default_factory=list)
    datasets: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    directions: Counter[str] = field(default_factory=Counter)
    """`text -> image`, say, by pairs."""
    query_words: list[int] = field(default_factory=list)
    target_words: list[int] = field(default_factory=list)
    negatives_a_pair: list[int] = field(default_factory=list)
    image_pixels: list[tuple[int, int]] = field(default_factory=list)
    """Width and height."""
    frames_a_video: list[int] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        self.datasets[sample.dataset] += 1
        self.pairs_a_sample.append(len(sample.pairs))
        self.image_pixels += [image.size for image in images_of(sample)]
        videos = {each.content_id: each for each in sample.visuals() if isinstance(each, Video)}
        self.frames_a_video += [len(video.frames) for video in videos.values()]
        for pair in sample.pairs:
            self.tasks[pair.task or "(none)"] += 1
            asked = _kind(pair.queries[0].text, sample.images + pair.queries[0].images)
            answered = _kind(pair.target.text, pair.target.images)
            self.directions[f"{asked} -> {answered}"] += 1
            self.query_words += [len(query.text.split()) for query in pair.queries]
            self.target_words.append(len(pair.target.text.split()))
            self.negatives_a_pair.append(len(pair.negatives))

    def spreads(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the spread of each figure."""
        shorter = [min(size) for size in self.image_pixels]
        longer = [max(size) for size in self.image_pixels]
        for name, values in (
            ("pairs a sample", self.pairs_a_sample),
            ("words a query", self.query_words),
            ("words a target", self.target_words),
            ("hard negatives a pair", self.negatives_a_pair),
            ("frames a video", self.frames_a_video),
            ("shorter side, pixels", shorter),
            ("longer side, pixels", longer),
        ):
            if values:
                yield name, _spread(values)


def summarize(reader: ShardReader, *, most: int, progress: ShowProgress) -> Summary:
    """Look at samples, `most` of them at most, spread evenly over the shards."""
    found = Summary(len(reader), num_bytes=sum(shard.num_bytes for shard in reader.index.shards))
    numbers = spread_over(len(reader), most)
    for number in progress(numbers, len(numbers), "looking at samples"):
        found.num_seen += 1
        try:
            found.add(reader[number])
        except DataError:
            found.num_unreadable += 1
    return found


def spread_over(length: int, most: int) -> list[int]:
    """Return at most so many of range(length), from the first to the last in even steps."""
    if length <= most:
        return list(range(length))
    return np.linspace(0, length - 1, most).astype(int).tolist()


def _kind(text: str, visuals: Sequence[Visual]) -> str:
    videos = [isinstance(each, Video) for each in visuals]
    parts = (("image", not all(videos)), ("video", any(videos)), ("text", bool(text)))
    return " + ".join(name for name, there in parts if there)


def _spread(values: Sequence[int]) -> str:
    if min(values) == max(values):
        return f"{values[0]:,}"
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{min(values):,} to {max(values):,}; median {middle:,.0f}, 90% within {low:,.0f} to {high:,.0f}"
