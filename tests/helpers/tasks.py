"""Tasks of numbered contents."""

from __future__ import annotations

from muco.core import Content, Task


def task_of(num_queries, pool, candidates, relevant):
    return Task("t", "vqa", [Content(str(i)) for i in range(num_queries)],
                [Content(str(i)) for i in range(pool)], candidates, relevant)  # fmt: skip
