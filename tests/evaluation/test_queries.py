"""Ranks and scores of queries on disk."""

from __future__ import annotations

import numpy as np
import pytest

from muco.core.errors import MucoError
from muco.evaluation.queries import QueryScores, queries_file, read_queries, write_queries

TASKS = {
    "b": QueryScores(np.array([1, 3, 2]), np.array([1.0, 0.0, 0.5])),
    "a": QueryScores(np.array([7]), np.array([0.25])),
}


def test_what_is_written_is_read_task_by_task_in_order(tmp_path):
    path = queries_file(tmp_path / "eval", "scenes")
    write_queries(path, TASKS)
    assert path.name == "scenes.queries.parquet"
    read = read_queries(path)
    assert list(read) == ["b", "a"]
    for name, task in TASKS.items():
        assert read[name].rank.tolist() == task.rank.tolist()
        assert read[name].score.tolist() == task.score.tolist()


def test_equal_scores_give_equal_bytes(tmp_path):
    first, second = tmp_path / "eval/a.parquet", tmp_path / "eval/b.parquet"
    write_queries(first, TASKS)
    write_queries(second, TASKS)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"PAR1 no table"])
def test_a_file_that_is_missing_or_broken_is_named(content, tmp_path):
    path = tmp_path / "x.queries.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MucoError, match=r"x\.queries\.parquet: cannot be read"):
        read_queries(path)
