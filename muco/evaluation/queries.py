"""`eval/<suite>.queries.parquet`: rank and score of every query, for paired comparisons of runs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muco.core.errors import library_errors
from muco.io.atomic import write_bytes, write_errors
from muco.io.untrusted import read_file


@dataclass(frozen=True)
class QueryScores:
    """The queries of one task, in its order."""

    rank: NDArray[np.int64]
    """[Q] of the first right candidate, from 1, ahead of the wrong ones that it ties with."""
    score: NDArray[np.float64]
    """[Q] by the task's metric, 0 to 1; their mean is the task's score."""


def queries_file(folder: Path, suite: str) -> Path:
    """Return the path of a suite's file in the `eval` folder of a run."""
    return folder / f"{suite}.queries.parquet"


def write_queries(path: Path, tasks: Mapping[str, QueryScores]) -> None:
    """Write a row for each query; equal scores give equal bytes.

    Raise MucoError if the disk is full or not writable.
    """
    import pyarrow as pa
    from pyarrow import parquet

    counts = [len(each.rank) for each in tasks.values()]
    columns: dict[str, Any] = {
        "task": pa.DictionaryArray.from_arrays(
            np.repeat(np.arange(len(counts), dtype=np.int32), counts), pa.array(list(tasks), pa.string())
        ),
        "query": np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        "rank": np.concatenate([each.rank for each in tasks.values()]),
        "score": np.concatenate([each.score for each in tasks.values()]),
    }
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    with write_errors(f"{path}: the result"):
        write_bytes(path, buffer.getvalue(), inside=path.parent.parent)


def read_queries(path: Path) -> dict[str, QueryScores]:
    """Return the queries of each task.

    Raise MucoError if the file is missing, or not what the evaluation writes.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema({"task": pa.string(), "rank": pa.int64(), "score": pa.float64()})
    with library_errors(f"{path}: cannot be read; run the evaluation again"):
        table = parquet.read_table(io.BytesIO(read_file(path)), columns=schema.names).cast(schema)
        if any(column.null_count for column in table.columns):
            raise ValueError("a number is missing")
    names = np.asarray(table["task"].to_pylist())
    rank, score = table["rank"].to_numpy(), table["score"].to_numpy()
    return {
        str(name): QueryScores(rank[names == name], score[names == name]) for name in dict.fromkeys(names)
    }
