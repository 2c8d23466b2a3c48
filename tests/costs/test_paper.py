"""The table of docs/efficiency.md is what muco counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from muco.config.load import load_recipe
from muco.costs.assumptions import Assumptions
from muco.costs.estimate import estimate

PAGE = (Path(__file__).parents[2] / "docs" / "efficiency.md").read_text(encoding="utf-8")
COLUMNS = (
    [],
    ["backbone.adapter=null", "backbone.freeze_vision=true"],
    ["backbone.adapter=null"],
)


def petaflops(overrides: list[str], **assumed: int) -> str:
    recipe = load_recipe("m3t_qwen", overrides)
    return f"{estimate(recipe, Assumptions.model_validate(assumed)).step.model / 1e15:.2f}"


def test_table_5_beside_the_paper():
    rows = re.findall(r"^\| (\d) \| (\d{4}) \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.M)
    assert len(rows) == 8
    for turns, images, *printed in rows:
        sizes = {"turns": int(turns), "images": int(images)}
        assert printed == [petaflops(overrides, **sizes) for overrides in COLUMNS]


@pytest.mark.parametrize(
    ("overrides", "printed"), list(zip(COLUMNS, ("15.21", "19.09", "27.30"), strict=True))
)
def test_the_batch_of_table_a(overrides: list[str], printed: str):
    sizes = {"image_width": 840, "image_height": 560, "query_words": 79, "target_words": 73, "images": 1024}
    assert petaflops([*overrides, "packer.system=''"], **sizes) == printed
    assert re.search(rf"\b{printed}\b", PAGE)
