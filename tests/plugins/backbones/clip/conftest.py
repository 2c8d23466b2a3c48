from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muco.core import Content, Pair, Sample
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from muco.plugins.backbones.clip import Clip
from tests.helpers.clip import IMAGES, build
from tests.helpers.small import picture


@pytest.fixture(scope="module")
def backbone() -> Clip:
    return build()


@pytest.fixture(scope="module")
def mlp() -> Clip:
    """A fusion that adds something."""
    backbone = build(fusion="mlp")
    torch.nn.init.normal_(backbone.fusion.down.weight, std=0.1)
    return backbone


@pytest.fixture
def saved(backbone, tmp_path) -> Path:
    backbone.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> ShardReader:
    """Samples of one to four turns, with and without image, some with hard negatives."""
    samples = []
    for number in range(7):
        pairs = tuple(
            Pair(
                f"task{turn}",
                (Content(f"what {number} {turn}"),),
                Content(f"a {number} {turn}", (picture("green", (40 + number, 40)),) if turn == 2 else ()),
                (Content(f"not {number}", IMAGES[1:]),) if number == 2 and turn == 0 else (),
            )
            for turn in range(1 + number % 4)
        )
        images = (picture("red", (56 + 28 * (number % 3), 56)),) if number % 3 else ()
        samples.append(Sample(f"{number}", "ragged", images, pairs))
    folder = tmp_path_factory.mktemp("ragged")
    write_shards(samples, folder, metadata={})
    return ShardReader(folder)
