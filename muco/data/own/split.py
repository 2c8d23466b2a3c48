"""Split rows into a training and a held-out table, so that no image is in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from muco.core.errors import DataError
from muco.data.own.layout import OwnData
from muco.data.own.pair_rows import PairRow, PairRows
from muco.data.own.write import table_writer
from muco.io.columns import PairColumns

_MAX_HELD_OUT = 1000
"""Groups of rows that are held out at most: more do not make the scores much more exact."""


@dataclass
class Split:
    """Two tables of the same columns."""

    train: Path
    held_out: Path | None
    """None if nothing is held out."""
    images: Path | None
    """The folder that image names in both tables start from; None if the tables hold the images."""
    num_train: int = 0
    num_held_out: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    """Rows without a pair: where each is, and why."""


def split_rows(
    data: OwnData,
    columns: PairColumns,
    stem: Path,
    *,
    share: float,
    seed: int,
    check_free: Callable[[Path], None],
) -> Split:
    """Write `STEM_train` and `STEM_held_out`, as JSONL, or as Parquet if the table holds the images.

    The tables have only the columns of the pairs. A `share` of the images is held out, 0 for none; the seed
    decides which. `check_free` raises MucoError if a path may not be written. Raise DataError if no row has a
    pair.
    """
    pairs = PairRows(data, columns)
    groups = _Groups()
    for row in pairs:
        groups.add(row.keys)
    if not len(groups):
        first = next(iter(pairs.skipped.items()), None)
        raise DataError(f"{data.path}: no row has a pair" + (f"; {first[0]}: {first[1]}" if first else ""))
    held_out = groups.choose(share, seed)
    suffix = ".parquet" if pairs.embedded else ".jsonl"
    paths = [stem.with_name(f"{stem.name}_{part}{suffix}") for part in ("train", "held_out")]
    for path in paths:
        check_free(path)
    root = None if pairs.embedded else pairs.common_folder()
    counts = _write(
        pairs, paths if held_out else paths[:1], root, lambda row: groups.group(row.keys) in held_out
    )
    images = None if pairs.embedded else root or data.root
    return Split(
        paths[0], paths[1] if held_out else None, images, counts[0], sum(counts[1:]), skipped=pairs.skipped
    )


class _Groups:
    """Rows that share an image, directly or by other rows."""

    def __init__(self) -> None:
        self._parents: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return sum(key == parent for key, parent in self._parents.items())

    def add(self, keys: Sequence[bytes]) -> None:
        """Join the groups of these keys."""
        roots = [self.group((key,)) for key in keys]
        for root in roots:
            self._parents[root] = roots[0]

    def group(self, keys: Sequence[bytes]) -> bytes:
        """Return the name of the group of a row."""
        key = keys[0]
        while (parent := self._parents.setdefault(key, key)) != key:
            self._parents[key] = self._parents[parent]
            key = parent
        return key

    def choose(self, share: float, seed: int) -> set[bytes]:
        """Return some groups: two or more, as one query has no wrong answer; none of fewer than four."""
        names = [key for key, parent in self._parents.items() if key == parent]
        if not share or len(names) < 4:
            return set()
        number = min(max(2, round(share * len(names))), _MAX_HELD_OUT, len(names) - 2)
        return set(Random(seed).sample(names, number))


def _write(
    pairs: PairRows, paths: Sequence[Path], root: Path | None, is_held_out: Callable[[PairRow], bool]
) -> list[int]:
    """Write each row to the first or the second table; return the number of rows of each."""
    counts = [0] * len(paths)
    with ExitStack() as stack:
        writers = [stack.enter_context(table_writer(path, pairs.columns)) for path in paths]
        for row in pairs:
            index = int(len(paths) > 1 and is_held_out(row))
            writers[index].add(pairs.relative(row.values, root))
            counts[index] += 1
    return counts
