"""Folders of Hugging Face `datasets`, read by source, suite and encoding without that package."""

from __future__ import annotations

import pytest

from muco.io.tables import rows, tables_below
from muco.plugins.datasets.pairs.source import Pairs
from muco.plugins.datasets.pairs.suite import PairsSuite
from muco.vectors.inputs import Columns, read_inputs
from tests.helpers.hub_datasets import write_dataset
from tests.helpers.small import picture

COLUMNS = {"query_image": "image", "target_text": "label"}


@pytest.fixture(params=["arrow", "parquet"])
def folder(request, tmp_path):
    return write_dataset(tmp_path / "pictures", request.param)


def test_the_source_reads_images_and_names_of_classes(folder):
    source = Pairs(Pairs.Config.model_validate({"path": str(folder), "columns": COLUMNS}))
    assert not source.left_out()
    samples = list(source.samples())
    assert [sample.pairs[0].target.text for sample in samples] == ["red", "blue", "green"] * 2
    assert samples[4].images[0].decode().size == (60, 56)


def test_the_suite_searches_the_distinct_targets(folder):
    (task,) = PairsSuite(PairsSuite.Config.model_validate({"data": str(folder), "columns": COLUMNS})).tasks()
    assert [content.text for content in task.pool] == ["red", "blue", "green"]
    assert task.relevant == [[0], [1], [2]] * 2
    assert task.queries[5].images[0].decode().size == (61, 56)


def test_encoding_reads_the_images(folder):
    inputs = read_inputs(folder, Columns(text="caption"))
    assert [(row.id, row.text) for row in inputs.rows[:2]] == [("1", "picture 0"), ("2", "picture 1")]
    assert inputs.content(inputs.rows[1]).images[0] == picture("blue", (57, 56))
    assert read_inputs(folder, Columns()).digest() != inputs.digest()


def test_rows_are_read_from_any_on_and_columns_are_chosen(folder):
    (table,), _ = tables_below(folder)
    assert [(row.number, row.values) for row in rows(table, ["label"], start=4)] == [
        (4, {"label": "blue"}),
        (5, {"label": "green"}),
    ]
