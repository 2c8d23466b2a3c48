"""docs/ablations.md against the schema of grids."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from muco.ablation.grid import Grid

PAGE = (Path(__file__).parents[2] / "docs/ablations.md").read_text()


def test_every_key_of_a_grid_is_documented_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGE.partition("## Cells")[0], re.MULTILINE))
    plain = Grid.model_construct().model_dump(mode="json")
    assert rows.keys() == plain.keys()
    for key, default in rows.items():
        if default != "optional":
            assert yaml.safe_load(default.strip("`")) == plain[key], key


def test_every_key_of_a_grid_has_a_docstring():
    assert [name for name, field in Grid.model_fields.items() if not field.description] == []
