"""What the rows of a table say together, in bounded memory."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from muco.core.ids import stable_id
from muco.generate.filters import Dropped
from muco.generate.inputs import Item
from muco.generate.steps import Generated, Skipped, Usage

_EXAMPLES, _REJECTS = 24, 5
_MOST_ANSWERS = 50_000

T = TypeVar("T")


class Examples(Generic[T]):
    """A few of many values, chosen by their names: the same ones in whatever order they come."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, str, T]] = []

    def add(self, name: str, value: T) -> None:
        """Consider a value; names differ."""
        entry = (-stable_id("example", name), name, value)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def values(self) -> list[T]:
        """Return the chosen values."""
        return [value for *_, value in sorted(self._heap, key=lambda it: it[:2], reverse=True)]


@dataclass
class Lengths:
    """The lengths of some texts, in words."""

    number: int = 0
    total: int = 0
    longest: int = 0

    def add(self, text: str) -> None:
        """Add one text."""
        length = len(text.split())
        self.number, self.total, self.longest = (
            self.number + 1,
            self.total + length,
            max(self.longest, length),
        )

    @property
    def mean(self) -> float:
        """The mean length; 0 without texts."""
        return self.total / self.number if self.number else 0.0


@dataclass
class Counts:
    """Numbers of images, pairs and tokens, and examples."""

    num_images: int = 0
    num_rows: int = 0
    """Images with pairs."""
    num_pairs: int = 0
    num_repaired: int = 0
    """Rows whose first answer had another form."""
    usage: Usage = field(default_factory=Usage)
    """Of the answers that the table is made from."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Pairs by turn."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Images without pairs, by reason."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Pairs that a filter dropped, by filter."""
    answers: Counter[str] = field(default_factory=Counter)
    captions: Lengths = field(default_factory=Lengths)
    queries: dict[str, Lengths] = field(default_factory=lambda: defaultdict(Lengths))
    targets: dict[str, Lengths] = field(default_factory=lambda: defaultdict(Lengths))
    examples: Examples[tuple[Item, Generated]] = field(default_factory=lambda: Examples(_EXAMPLES))
    skipped_examples: dict[str, Examples[tuple[Item, str]]] = field(
        default_factory=lambda: defaultdict(lambda: Examples(_REJECTS))
    )
    dropped_examples: dict[str, Examples[tuple[Item, Dropped]]] = field(
        default_factory=lambda: defaultdict(lambda: Examples(_REJECTS))
    )

    def add(self, item: Item, result: Generated | Skipped) -> None:
        """Add one image."""
        self.num_images += 1
        self.usage.requests += result.usage.requests
        self.usage.prompt_tokens += result.usage.prompt_tokens
        self.usage.completion_tokens += result.usage.completion_tokens
        self.usage.retries += result.usage.retries
        for each in result.dropped:
            self.dropped[each.filter] += 1
            self.dropped_examples[each.filter].add(f"{item.image} {each.pair.turn}", (item, each))
        if isinstance(result, Skipped):
            self.skipped[result.reason] += 1
            self.skipped_examples[result.reason].add(item.image, (item, result.detail))
        else:
            self._add_row(item, result)

    def _add_row(self, item: Item, row: Generated) -> None:
        self.num_rows += 1
        self.num_pairs += len(row.pairs)
        self.num_repaired += row.repaired
        self.captions.add(row.caption)
        self.examples.add(item.image, (item, row))
        for pair in row.pairs:
            self.kinds[pair.turn] += 1
            self.queries[pair.turn].add(pair.queries[0])
            self.targets[pair.turn].add(pair.answer)
            self.answers[pair.answer] += 1
        if len(self.answers) > 2 * _MOST_ANSWERS:  # rare ones are forgotten
            self.answers = Counter(dict(self.answers.most_common(_MOST_ANSWERS)))
