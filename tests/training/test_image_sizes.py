"""The note of a run that enlarges its images far beyond their size."""

from __future__ import annotations

import pytest

from muco.core import Content, Pair, Sample
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.training.image_sizes import enlarging_note
from tests.helpers.small import picture


@pytest.fixture
def reader(tmp_path) -> ShardReader:
    samples = [
        Sample(str(n), "d", (picture("red", (64 + n, 48)),), (Pair("t", (Content("q"),), Content("red")),))
        for n in range(3)
    ]
    write_shards(samples, tmp_path / "s", metadata={})
    return ShardReader(tmp_path / "s")


def test_images_enlarged_many_times_are_said(reader):
    assert enlarging_note(200704, [reader]) == (
        "images of about 65 x 48 pixels are enlarged to 200,704 pixels, 64 times as many; a smaller "
        "backbone.min_pixels is faster"
    )


def test_images_of_about_that_size_are_not(reader):
    assert enlarging_note(3136, [reader]) is None
    assert enlarging_note(0, []) is None
