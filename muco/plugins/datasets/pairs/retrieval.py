"""Queries, candidates and right answers of a table of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from muco.core.errors import DataError
from muco.core.sample import Content
from muco.io.lazy import LazyContents
from muco.io.tables import Row
from muco.plugins.datasets.pairs.table import ImagesAndPair, PairTable


@dataclass(frozen=True)
class Retrieval:
    """The distinct queries of a table, to be searched among its distinct targets."""

    queries: Sequence[Content]
    pool: Sequence[Content]
    relevant: list[list[int]]
    """For each query, the indices of its targets in `pool`."""


def read_retrieval(table: PairTable) -> Retrieval:
    """Return the queries and targets of a table; an image is read each time that its content is used.

    Of several wordings of a query, the first is used. Hard negatives are not. Raise DataError if a row has no
    pair, or one of its images is missing.
    """
    queries: dict[Content, int] = {}
    targets: dict[Content, int] = {}
    query_rows: list[int] = []
    target_rows: list[int] = []
    relevant: list[list[int]] = []
    for position, row in table.rows():
        query, target = _outlines(table, row)
        if query not in queries:
            queries[query] = len(queries)
            query_rows.append(position)
            relevant.append([])
        if target not in targets:
            targets[target] = len(targets)
            target_rows.append(position)
        right = relevant[queries[query]]
        if targets[target] not in right:
            right.append(targets[target])
    if not queries:
        raise DataError(f"{table.path}: no row")
    return Retrieval(
        LazyContents(lambda index: _query(table.pair(table.row(query_rows[index]))), range(len(queries))),
        LazyContents(lambda index: _target(table.pair(table.row(target_rows[index]))), range(len(targets))),
        relevant,
    )


def _outlines(table: PairTable, row: Row) -> tuple[Content, Content]:
    """Return query and target with hashes in place of images; raise DataError with the row's location."""
    try:
        outline = table.outline(row)
        list(table.files_of(row))
    except (DataError, ValueError) as error:
        raise DataError(f"{row.location}: {error}") from None
    return _query(outline), replace(_target(outline), caption="")


def _query(pair: ImagesAndPair) -> Content:
    images, parts = pair
    return Content(parts.queries[0].text, images)


def _target(pair: ImagesAndPair) -> Content:
    return pair[1].target
